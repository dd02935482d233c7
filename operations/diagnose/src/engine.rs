//! Applies the rules.

use crate::look::{Finding, Look};
use crate::rules::{RULES, Rule, Sign};
use crate::scene::Scene;
use crate::stages::Stage;
use crate::verdict::{Gravity, Verdict};

/// Explains a scene: what is fatal first, then what is merely bad, then what is harmless; in each, the surest
/// first. Empty if nothing is wrong, or nothing that any rule knows.
///
/// Pure, and bounded: at most one verdict for each rule, of bounded size, whatever the consoles said.
pub fn diagnose(scene: &Scene) -> Vec<Verdict> {
    let look = Look::new(scene, false);
    let has_earlier = scene.consoles.iter().any(|console| console.boot_line > 0);
    // A machine that was reset because its kernel panicked has yet to come so far again.
    if !has_earlier || look.has_reached(Stage::Init) {
        return judge(&look);
    }
    judge(&Look::new(scene, true))
}

fn judge(look: &Look<'_>) -> Vec<Verdict> {
    let found: Vec<(&Rule, Finding)> = RULES
        .iter()
        .filter_map(|rule| Some((rule, apply(rule, look)?)))
        .collect();
    let has = |id: &str| found.iter().any(|(rule, _)| rule.id == id);
    let mut kept: Vec<Verdict> = Vec::new();
    for (rule, finding) in &found {
        if rule.yields_to.iter().any(|other| has(other)) {
            continue;
        }
        // What stands at the end of the table explains only what nothing else does.
        let is_last_resort = rule.yields_to.contains(&EVERYTHING)
            && found.iter().any(|(other, _)| {
                other.id != rule.id
                    && other.gravity == Gravity::Fatal
                    && !other.yields_to.contains(&EVERYTHING)
            });
        if is_last_resort {
            continue;
        }
        kept.push(verdict(rule, finding));
    }
    kept.sort_by_key(|verdict| (verdict.gravity, verdict.confidence));
    kept
}

/// Stands in [`Rule::yields_to`] for every other fatal verdict.
pub(crate) const EVERYTHING: &str = "*";

fn apply(rule: &Rule, look: &Look<'_>) -> Option<Finding> {
    match rule.sign {
        Sign::Asks(ask) => ask(look),
        Sign::Says(confidence, alternatives) => {
            let lines: Vec<_> = alternatives
                .iter()
                .filter_map(|parts| look.first(parts))
                .collect();
            (!lines.is_empty()).then(|| Finding::new(confidence).lines(look, lines))
        }
    }
}

fn verdict(rule: &Rule, finding: &Finding) -> Verdict {
    let mut explanation = rule.meaning.to_owned();
    if !finding.details.is_empty() {
        explanation.push(' ');
        explanation.push_str(&finding.details);
    }
    Verdict {
        id: rule.id.into(),
        title: rule.title.into(),
        gravity: rule.gravity,
        confidence: finding.confidence,
        evidence: finding.evidence.clone(),
        explanation,
        mend: finding.mend.clone().unwrap_or_else(|| rule.mend.to_owned()),
    }
}
