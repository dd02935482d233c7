//! What is known of a field beside its name and value.

/// Said of the next leaf or child, just before it is visited: what a metrics page needs and a tree of
/// values has no place for. The derive says it of every field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// What it means, in a sentence; empty if nobody wrote one.
    pub help: &'static str,
    /// Name of the metric without `nyx_`, unit suffix or `_total`; empty for the field's own name.
    pub metric: &'static str,
    /// Labels of its own, beside those of the nodes above.
    pub labels: &'static [(&'static str, &'static str)],
    /// The name is a key among its like, and this is the label that tells them apart: `unit`, `vcpu`.
    /// Empty for a plain name.
    pub key: &'static str,
    /// For a list or map: the label that tells its items apart, when `index` and `key` will not do.
    pub items: &'static str,
}

impl About {
    /// The next name is a value of label `key`.
    pub const fn key(key: &'static str) -> Self {
        Self {
            help: "",
            metric: "",
            labels: &[],
            key,
            items: "",
        }
    }

    /// The next leaf is metric `metric`, and means `help`.
    pub const fn metric(metric: &'static str, help: &'static str) -> Self {
        Self {
            help,
            metric,
            labels: &[],
            key: "",
            items: "",
        }
    }

    /// The same with labels.
    #[must_use]
    pub const fn labels(self, labels: &'static [(&'static str, &'static str)]) -> Self {
        Self { labels, ..self }
    }
}
