//! Handing metrics to a program that embeds the machine.

use nyx_inspect::{BOUNDS, Series, Value};

/// Names and values of labels.
pub type Labels = [(String, String)];

/// Told every metric: name, value in the unit of its name, labels. A histogram comes as its `_bucket`s
/// (cumulative, with label `le` in seconds), `_sum` and `_count`, as on the metrics page.
pub type ExportCallback = Box<dyn Fn(&str, f64, &Labels) + Send + Sync>;

/// Tells `callback` every series.
pub fn export(series: &[Series], callback: &dyn Fn(&str, f64, &Labels)) {
    for one in series {
        let Value::Histogram(distribution) = &one.value else {
            callback(&one.name, one.value.number(), &one.labels);
            continue;
        };
        let mut labels = one.labels.clone();
        let name = format!("{}_bucket", one.name);
        let mut cumulative = 0_u64;
        for (at, n) in distribution.buckets.iter().enumerate() {
            cumulative = cumulative.saturating_add(*n);
            let le = BOUNDS
                .get(at)
                .map_or("+Inf".into(), |nanos| (*nanos as f64 / 1e9).to_string());
            labels.push(("le".into(), le));
            callback(&name, cumulative as f64, &labels);
            labels.pop();
        }
        let sum = distribution.sum as f64 / 1e9;
        callback(&format!("{}_sum", one.name), sum, &one.labels);
        callback(
            &format!("{}_count", one.name),
            cumulative as f64,
            &one.labels,
        );
    }
}
