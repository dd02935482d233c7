//! What every device must do, over both transports.

use crate::{BlkKind, ConsoleKind, NetKind, RngKind, VsockConfig, VsockKind};
use nyx_device::{Attach, BoxError, ConfigError, Erased, Hit, Wiring};
use nyx_testkit::{Bench, conformance, json};
use nyx_virtio::{Shape, Virtio, VirtioDevice, VirtioKind};
use std::sync::atomic::{AtomicU32, Ordering};

conformance!(
    blk_pci,
    Virtio<BlkKind>,
    json!({"backend": {"kind": "d"}, "queues": 2})
);
conformance!(
    blk_mmio,
    Virtio<BlkKind>,
    json!({"backend": {"kind": "d"}}),
    Attach::Mmio
);
conformance!(rng_pci, Virtio<RngKind>, json!({}));
conformance!(rng_mmio, Virtio<RngKind>, json!({}), Attach::Mmio);
conformance!(
    net_pci,
    Virtio<NetKind>,
    json!({"backend": {"kind": "n"}, "mtu": 1500})
);
conformance!(
    net_mmio,
    Virtio<NetKind>,
    json!({"backend": {"kind": "n"}}),
    Attach::Mmio
);
conformance!(console_pci, Virtio<ConsoleKind>, two_ports());
conformance!(
    console_mmio,
    Virtio<ConsoleKind>,
    json!({"ports": [{"backend": {"kind": "c"}}]}),
    Attach::Mmio
);
conformance!(
    vsock_pci,
    Virtio<AnyPath>,
    json!({"cid": 3, "socket": "/v"})
);
conformance!(
    vsock_mmio,
    Virtio<AnyPath>,
    json!({"cid": 3, "socket": "/v"}),
    Attach::Mmio
);

fn two_ports() -> serde_json::Value {
    json!({"ports": [
        {"backend": {"kind": "c"}},
        {"backend": {"kind": "d"}, "name": "agent", "console": false},
    ]})
}

/// The socket device, on a path of its own each time: a check may build two at once.
struct AnyPath;

impl VirtioKind for AnyPath {
    const KIND: &'static str = VsockKind::KIND;
    type Config = VsockConfig;

    fn shape(config: &VsockConfig) -> Result<Shape, ConfigError> {
        VsockKind::shape(config)
    }

    fn build(
        mut config: VsockConfig,
        wiring: &mut Wiring<'_>,
    ) -> Result<Box<dyn VirtioDevice>, BoxError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        config.socket =
            std::env::temp_dir().join(format!("nyx-{}-{number}.vsock", std::process::id()));
        VsockKind::build(config, wiring)
    }
}

/// Over real worker threads: a task is gone, and its backend free to be lent again, by the time the
/// driver sees that the device was reset.
fn survives_resets<K: VirtioKind>(config: serde_json::Value) {
    let bench = Bench::of(&Erased::<Virtio<K>>::new(), config, Attach::Mmio);
    let mut device = bench.build::<Virtio<K>>();
    let mut put = |offset, value: u32| {
        device
            .write(Hit::new(0, offset), &value.to_le_bytes())
            .unwrap();
        let mut status = [0; 4];
        device.read(Hit::new(0, STATUS), &mut status).unwrap();
        u32::from_le_bytes(status)
    };
    for _ in 0..200 {
        put(STATUS, 3);
        // VERSION_1 and nothing else.
        put(DRIVER_FEATURES_SEL, 1);
        put(DRIVER_FEATURES, 1);
        assert_eq!(put(STATUS, 0xb), 0xb);
        assert_eq!(put(STATUS, 0xf), 0xf);
        while put(STATUS, 0) != 0 {
            std::thread::yield_now();
        }
    }
    assert_eq!(bench.faults.take(), []);
}

// Virtio 1.2 §4.2.2.
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const STATUS: u64 = 0x70;

#[test]
fn devices_survive_resets_in_quick_succession() {
    survives_resets::<BlkKind>(json!({"backend": {"kind": "d"}}));
    survives_resets::<NetKind>(json!({"backend": {"kind": "n"}}));
    survives_resets::<ConsoleKind>(two_ports());
    survives_resets::<AnyPath>(json!({"cid": 3, "socket": "/v"}));
}
