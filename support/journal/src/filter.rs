//! Which entries are written: a level, and levels per component.

use crate::level::Level;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Most rules of one filter: it is searched at every entry, and the API may set it.
pub const MAX_RULES: usize = 256;

/// The name of a component, or the beginning of names followed by `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern {
    text: String,
    is_prefix: bool,
}

impl Pattern {
    /// Whether it names `component`.
    pub fn matches(&self, component: &str) -> bool {
        if self.is_prefix {
            component.starts_with(&self.text)
        } else {
            component == self.text
        }
    }
}

impl FromStr for Pattern {
    type Err = FilterError;
    fn from_str(text: &str) -> Result<Self, FilterError> {
        let trimmed = text.trim();
        let (name, is_prefix) = match trimmed.strip_suffix('*') {
            Some(name) => (name, true),
            None => (trimmed, false),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.:/".contains(c);
        if name.len() > 128 || !name.chars().all(is_name) || (name.is_empty() && !is_prefix) {
            return Err(FilterError::Component(trimmed.chars().take(64).collect()));
        }
        Ok(Self {
            text: name.into(),
            is_prefix,
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.is_prefix { "*" } else { "" })
    }
}

/// A filter that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No name of a component.
    #[error("{0:?} is not a component; use letters, digits and _-.:/ and at most one * at the end")]
    Component(String),
    /// No level.
    #[error("component {component}: {source}")]
    Level {
        /// Whose level.
        component: String,
        /// What is wrong.
        source: crate::level::LevelError,
    },
    /// No rule.
    #[error("{0:?} is not a filter; write it like device=debug,guest=info,*=warn")]
    Rule(String),
    /// Named twice.
    #[error("component {0} is given twice; keep one of its levels")]
    Twice(String),
    /// Too long.
    #[error("{0} rules are too many; at most 256 are possible, use a prefix such as dev*=debug")]
    TooMany(usize),
}

/// The threshold of every component. The most specific rule wins: the exact name, then the longest
/// matching prefix, then `*`, then the level for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    level: Level,
    exact: BTreeMap<String, Level>,
    /// Longest first.
    prefixes: Vec<(String, Level)>,
}

impl Filter {
    /// One threshold for all components.
    pub fn new(level: Level) -> Self {
        Self {
            level,
            ..Self::default()
        }
    }

    /// A level for all, and rules from pattern to level.
    ///
    /// # Errors
    /// A pattern is malformed, or there are more than [`MAX_RULES`].
    pub fn with_rules<'a>(
        level: Level,
        rules: impl IntoIterator<Item = (&'a str, Level)>,
    ) -> Result<Self, FilterError> {
        let mut filter = Self::new(level);
        for (pattern, level) in rules {
            filter.set(pattern.parse()?, level)?;
        }
        Ok(filter)
    }

    /// Sets or replaces the rule of one pattern.
    ///
    /// # Errors
    /// It would be one more than [`MAX_RULES`].
    pub fn set(&mut self, pattern: Pattern, level: Level) -> Result<(), FilterError> {
        let Pattern { text, is_prefix } = pattern;
        if is_prefix {
            match self.prefixes.iter_mut().find(|(known, _)| *known == text) {
                Some((_, known)) => *known = level,
                None => {
                    self.prefixes.push((text, level));
                    self.prefixes
                        .sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then(a.cmp(b)));
                }
            }
        } else {
            self.exact.insert(text, level);
        }
        let rules = self.exact.len() + self.prefixes.len();
        if rules > MAX_RULES {
            return Err(FilterError::TooMany(rules));
        }
        Ok(())
    }

    /// The threshold of `component`.
    pub fn threshold(&self, component: &str) -> Level {
        if let Some(level) = self.exact.get(component) {
            return *level;
        }
        self.prefixes
            .iter()
            .find(|(prefix, _)| component.starts_with(prefix.as_str()))
            .map_or(self.level, |(_, level)| *level)
    }

    /// Whether an entry passes.
    pub fn passes(&self, component: &str, level: Level) -> bool {
        level != Level::Off && level >= self.threshold(component)
    }

    /// The least severe level that any component may pass.
    pub(crate) fn widest(&self) -> Level {
        self.exact
            .values()
            .chain(self.prefixes.iter().map(|(_, level)| level))
            .fold(self.level, |widest, level| widest.min(*level))
    }
}

/// Reads `device=debug,guest=info,dev*=warn,*=info`; a level alone is the level for all.
impl FromStr for Filter {
    type Err = FilterError;
    fn from_str(text: &str) -> Result<Self, FilterError> {
        let rules = text.split(',').count();
        if rules > MAX_RULES {
            return Err(FilterError::TooMany(rules));
        }
        let mut filter = Self::default();
        let mut seen = Vec::new();
        for part in text.split(',') {
            let (component, level) = match part.split_once('=') {
                Some((component, level)) => (Some(component.parse::<Pattern>()?), level),
                None => (None, part),
            };
            let level = level.parse().map_err(|source| match &component {
                Some(component) => FilterError::Level {
                    component: component.to_string(),
                    source,
                },
                None => FilterError::Rule(part.chars().take(64).collect()),
            })?;
            if seen.contains(&component) {
                let name = component.map_or("(all)".into(), |pattern| pattern.to_string());
                return Err(FilterError::Twice(name));
            }
            seen.push(component.clone());
            match component {
                Some(pattern) => filter.set(pattern, level)?,
                None => filter.level = level,
            }
        }
        Ok(filter)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.level.fmt(f)?;
        for (component, level) in &self.exact {
            write!(f, ",{component}={level}")?;
        }
        for (prefix, level) in &self.prefixes {
            write!(f, ",{prefix}*={level}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_most_specific_rule_wins() {
        let filter: Filter = "warn,*=info,dev*=error,device=debug,devi*=off"
            .parse()
            .unwrap();
        assert_eq!(filter.threshold("device"), Level::Debug);
        assert_eq!(filter.threshold("devil"), Level::Off);
        assert_eq!(filter.threshold("dev"), Level::Error);
        assert_eq!(filter.threshold("api"), Level::Info);
        assert!(!filter.passes("devil", Level::Fatal));
        assert_eq!(filter.widest(), Level::Debug);
        assert_eq!(
            "warn,a=info".parse::<Filter>().unwrap().threshold("b"),
            Level::Warn
        );
    }

    #[test]
    fn one_clear_sentence_for_bad_filters() {
        let said = |text: &str| text.parse::<Filter>().unwrap_err().to_string();
        assert_eq!(
            said("device=loud"),
            "component device: \"loud\" is not a level; write trace, debug, info, warn, error, fatal or off"
        );
        assert_eq!(
            said("de*ce=info"),
            "\"de*ce\" is not a component; use letters, digits and _-.:/ and at most one * at the end"
        );
        assert_eq!(
            said("loud"),
            "\"loud\" is not a filter; write it like device=debug,guest=info,*=warn"
        );
        assert_eq!(
            said("a=info,a=warn"),
            "component a is given twice; keep one of its levels"
        );
        assert!(said(&"a=info,".repeat(300)).starts_with("301 rules are too many"));
    }

    fn rules() -> impl Strategy<Value = Vec<(String, Level)>> {
        let level = proptest::sample::select(vec![
            Level::Trace,
            Level::Debug,
            Level::Info,
            Level::Warn,
            Level::Error,
            Level::Fatal,
            Level::Off,
        ]);
        proptest::collection::vec(("[ab]{0,3}\\*|[ab]{1,3}", level), 0..12)
    }

    proptest! {
        /// Against the definition: of all matching rules the one that says most about the name.
        #[test]
        fn filters_follow_their_definition(rules in rules(), component in "[abc]{1,4}") {
            let filter = Filter::with_rules(Level::Info, rules.iter().map(|(p, l)| (p.as_str(), *l)));
            let filter = filter.unwrap();
            // A later rule for the same pattern replaces the earlier one; `max_by_key` takes the last.
            let expected = rules
                .iter()
                .filter(|(pattern, _)| match pattern.strip_suffix('*') {
                    Some(prefix) => component.starts_with(prefix),
                    None => *pattern == component,
                })
                .max_by_key(|(pattern, _)| (!pattern.ends_with('*'), pattern.len()))
                .map_or(Level::Info, |(_, level)| *level);
            prop_assert_eq!(filter.threshold(&component), expected);
            prop_assert!(filter.widest() <= expected);
            for level in Level::ALL {
                prop_assert_eq!(filter.passes(&component, level), level >= expected);
            }
            prop_assert_eq!(filter.to_string().parse::<Filter>().unwrap(), filter);
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            let _ = text.parse::<Filter>();
        }
    }
}
