//! Both views of one derived tree.

use super::*;
use serde_json::json;

#[derive(Inspect)]
#[inspect(crate = "crate")]
struct Uart {
    #[inspect(hex)]
    base: u16,
    tx_bytes: Counter,
    queued: Gauge,
    #[inspect(skip)]
    _wire: (),
    modem: Modem,
    names: Vec<String>,
}

#[derive(Inspect)]
#[inspect(crate = "crate")]
struct Modem {
    cts: bool,
    breaks: Counter,
}

fn uart() -> Uart {
    let uart = Uart {
        base: 0x3f8,
        tx_bytes: Counter::default(),
        queued: Gauge::default(),
        _wire: (),
        modem: Modem {
            cts: true,
            breaks: Counter::default(),
        },
        names: vec!["a".into(), "b".into()],
    };
    uart.tx_bytes.add(3);
    uart.queued.set(2);
    uart
}

#[test]
fn json_shows_every_field_but_the_skipped() {
    assert_eq!(
        Json::of(&uart()),
        json!({
            "base": "0x3f8", "tx_bytes": 3, "queued": 2,
            "modem": { "cts": true, "breaks": 0 },
            "names": { "0": "a", "1": "b" },
        })
    );
}

#[test]
fn prometheus_shows_only_metrics_labelled_by_path() {
    let mut page = Prometheus::default();
    page.child("isa/com1", &uart());
    assert_eq!(
        page.page(),
        "# TYPE nyx_breaks_total counter\n\
         nyx_breaks_total{unit=\"isa/com1/modem\"} 0\n\
         # TYPE nyx_queued gauge\n\
         nyx_queued{unit=\"isa/com1\"} 2\n\
         # TYPE nyx_tx_bytes_total counter\n\
         nyx_tx_bytes_total{unit=\"isa/com1\"} 3\n"
    );
}
