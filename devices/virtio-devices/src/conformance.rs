//! What every device must do, over both transports.

use crate::{BlkKind, ConsoleKind, NetKind, RngKind, VsockKind};
use nyx_device::Attach;
use nyx_testkit::{conformance, json};
use nyx_virtio::Virtio;
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
conformance!(vsock_pci, Virtio<VsockKind>, socket());

fn two_ports() -> serde_json::Value {
    json!({"ports": [
        {"backend": {"kind": "c"}},
        {"backend": {"kind": "d"}, "name": "agent", "console": false},
    ]})
}

/// A path of its own for every test.
fn socket() -> serde_json::Value {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "nyx-{}-{}.vsock",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    json!({"cid": 3, "socket": std::env::temp_dir().join(name)})
}
