//! Layout, placement and the command line, on made-up kinds.

use super::*;
use nyx_boot::disk_probe::{FileSystem, RootDisk};
use nyx_device::{
    AnyKind, Attach, BarDemand, BarSpace, Bdf, BoxError, ConfigError, Demand, Device, DeviceKind,
    Erased, FunctionDemand, IrqDemand, Placement, Space, Window, Wiring,
};
use nyx_spec::{VmSpec, parse_toml};
use serde_json::Value;
use std::collections::BTreeMap;

/// Stands for any platform kind: takes what it is told to by its name.
macro_rules! kind {
    ($name:ident, $kind:literal, $demand:expr) => {
        struct $name;
        impl DeviceKind for $name {
            const KIND: &'static str = $kind;
            type Config = Value;
            fn demand(config: &Value, attach: Attach) -> Result<Demand, ConfigError> {
                let f: fn(&Value, Attach) -> Demand = $demand;
                Ok(f(config, attach))
            }
            fn build(_: Value, _: &mut Wiring<'_>) -> Result<Box<dyn Device>, BoxError> {
                Err("not built here".into())
            }
        }
    };
}

fn fixed(space: Space, base: u64, len: u64) -> Window {
    Window {
        region: 0,
        space,
        len,
        fixed: Some(base),
    }
}

fn virtio(attach: Attach) -> Demand {
    match attach {
        Attach::Pci => Demand {
            pci: Some(FunctionDemand {
                bars: vec![BarDemand {
                    index: 0,
                    len: 0x4000,
                    space: BarSpace::Memory32,
                    prefetchable: false,
                }],
                msix_vectors: 3,
                msix_bar: 1,
                intx: true,
                ..FunctionDemand::default()
            }),
            ..Demand::default()
        },
        Attach::Mmio => Demand {
            windows: vec![Window {
                region: 0,
                space: Space::Mmio,
                len: 0x1000,
                fixed: None,
            }],
            irqs: BTreeMap::from([("intr".into(), IrqDemand::Any)]),
            ..Demand::default()
        },
    }
}

kind!(Ioapic, "ioapic", |c, _| Demand {
    windows: vec![fixed(Space::Mmio, c["address"].as_u64().unwrap(), 0x1000)],
    ..Demand::default()
});
kind!(Pm, "pm", |_, _| Demand {
    windows: vec![fixed(Space::Pio, 0x600, 0x40)],
    irqs: BTreeMap::from([("sci".into(), IrqDemand::Fixed(9))]),
    ..Demand::default()
});
kind!(Rtc, "rtc", |_, _| Demand::default());
kind!(I8042, "i8042", |_, _| Demand::default());
kind!(Post, "post-port", |_, _| Demand::default());
kind!(Panic, "pvpanic", |_, _| Demand::default());
kind!(Genid, "vmgenid", |_, _| Demand {
    irqs: BTreeMap::from([("event".into(), IrqDemand::Any)]),
    reserved_ram: 16,
    ..Demand::default()
});
kind!(Host, "pci-host", |_, _| Demand::default());
kind!(Bridge, "host-bridge", |_, _| Demand {
    pci: Some(FunctionDemand {
        fixed: Some(Bdf::new(0, 0)),
        ..FunctionDemand::default()
    }),
    ..Demand::default()
});
kind!(Serial, "serial", |c, _| Demand {
    windows: vec![fixed(Space::Pio, c["port"].as_u64().unwrap(), 8)],
    irqs: BTreeMap::from([(
        "intr".into(),
        IrqDemand::Fixed(c["irq"].as_u64().unwrap() as u32)
    )]),
    ..Demand::default()
});
kind!(Blk, "virtio-blk", |_, a| virtio(a));
kind!(Rng, "virtio-rng", |_, a| virtio(a));

const CATALOG: &[&dyn AnyKind] = &[
    &Erased::<Ioapic>::new(),
    &Erased::<Pm>::new(),
    &Erased::<Rtc>::new(),
    &Erased::<I8042>::new(),
    &Erased::<Post>::new(),
    &Erased::<Panic>::new(),
    &Erased::<Genid>::new(),
    &Erased::<Host>::new(),
    &Erased::<Bridge>::new(),
    &Erased::<Serial>::new(),
    &Erased::<Blk>::new(),
    &Erased::<Rng>::new(),
];
const HOST: HostFacts = HostFacts {
    physical_address_bits: 40,
    max_vcpus: 64,
};

fn spec(text: &str) -> VmSpec {
    parse_toml(&format!("boot.kernel = \"k\"\n{text}"))
        .unwrap()
        .validate()
        .unwrap()
}

fn plan(text: &str) -> MachinePlan {
    resolve(&spec(text), &HOST, CATALOG, &[]).unwrap()
}

fn refusals(text: &str) -> Vec<String> {
    let refused = resolve(&spec(text), &HOST, CATALOG, &[]).unwrap_err();
    refused.iter().map(ToString::to_string).collect()
}

#[test]
fn ram_above_the_hole_moves_past_4g_and_the_map_is_ascending_and_disjoint() {
    for memory in ["8M", "512M", "2816M", "3G", "8G", "300G"] {
        let plan = plan(&format!("memory = \"{memory}\"\n"));
        let asked: nyx_spec::ByteSize = memory.parse().unwrap();
        assert_eq!(
            plan.layout.ram.iter().map(|r| r.len).sum::<u64>(),
            asked.0,
            "{memory}"
        );
        let mut last = 0;
        for entry in &plan.layout.map {
            assert!(
                entry.range.base >= last,
                "{memory}: {:#x}",
                entry.range.base
            );
            last = entry.range.end();
        }
        assert_eq!(
            plan.layout.ram.len(),
            usize::from(asked.0 > 0xb000_0000) + 1,
            "{memory}"
        );
    }
}

#[test]
fn huge_pages_are_never_split_by_the_hole() {
    let plan = plan("memory = { size = \"4G\", huge_pages = \"1G\" }\n");
    assert_eq!(plan.layout.ram[0].len, 2 << 30);
    assert_eq!(plan.layout.ram[1].len, 2 << 30);
    let rtc = plan.placements.iter().find(|p| p.name == "rtc").unwrap();
    let told = serde_json::json!({ "low_memory": 2u64 << 30, "high_memory": 2u64 << 30 });
    assert_eq!(rtc.config, told, "the CMOS says where RAM is");
}

#[test]
fn planning_is_deterministic_and_survives_serialisation() {
    let text = "memory = \"1G\"\n[[disks]]\npath = \"a\"\n[[disks]]\npath = \"b\"\n";
    let first = plan(text);
    assert_eq!(first, plan(text));
    let json = serde_json::to_string(&first).unwrap();
    assert_eq!(serde_json::from_str::<MachinePlan>(&json).unwrap(), first);
}

#[test]
fn pci_devices_get_slots_aligned_bars_and_swizzled_pins() {
    let plan = plan("[[disks]]\npath = \"a\"\n[[disks]]\npath = \"b\"\n");
    let disk = |name: &str| plan.placements.iter().find(|p| p.name == name).unwrap();
    assert_eq!(disk("disk0").bdf, Some(Bdf::new(1, 0)));
    assert_eq!(disk("disk1").bdf, Some(Bdf::new(2, 0)));
    assert_eq!(
        (disk("disk0").irqs["intx"], disk("disk1").irqs["intx"]),
        (17, 18)
    );
    let mut seen = Vec::new();
    for p in &plan.placements {
        for bar in p.demand.pci.iter().flat_map(|d| d.all_bars()) {
            let base = p.bars[&bar.index];
            assert!(base.is_multiple_of(bar.len), "{base:#x}");
            assert!(
                seen.iter()
                    .all(|&(b, l)| base >= b + l || b >= base + bar.len)
            );
            seen.push((base, bar.len));
        }
    }
    assert_eq!(seen.len(), 6);
    for route in &plan.intx {
        assert!((16..20).contains(&route.gsi));
    }
}

#[test]
fn without_pci_devices_get_windows_and_wires() {
    let disks = "[[disks]]\npath = \"d\"\n".repeat(20);
    let plan = plan(&format!("transport = \"mmio\"\n{disks}"));
    assert!(plan.layout.ecam.is_none() && plan.intx.is_empty());
    let disk: Vec<_> = plan
        .placements
        .iter()
        .filter(|p| p.kind == "virtio-blk")
        .collect();
    assert_eq!(disk.len(), 20);
    assert_eq!(disk[1].windows[&0], disk[0].windows[&0] + 0x1000);
    assert_ne!(disk[0].irqs["intr"], disk[1].irqs["intr"]);
    let genid = plan
        .placements
        .iter()
        .find(|p| p.name == "vmgenid")
        .unwrap();
    let alone = |d: &&Placement| d.irqs["intr"] != genid.irqs["event"];
    assert!(disk.iter().all(alone), "an edge is never shared");
    assert!(
        disk.iter()
            .all(|d| d.irqs["intr"] < 24 && d.irqs["intr"] != 9)
    );
}

#[test]
fn refusals_name_field_value_and_mend() {
    assert_eq!(
        refusals("cpus = 65\nmemory = \"2048G\"\n"),
        [
            "cpus: 65 vCPUs are too many for this host; use at most 64",
            "memory: 2199023255552 bytes do not fit the 40 physical address bits of this host; use \
             at most 1098169450496"
        ]
    );
    let most = "memory: 18446744073709547520 bytes do not fit";
    assert!(refusals("memory = \"18014398509481980K\"\n")[0].starts_with(most));
    for name in ["rtc", "vm", "clock", "vcpu0", "pci-host"] {
        let said = refusals(&format!("[[disks]]\npath = \"d\"\nname = \"{name}\"\n"));
        let reason = format!("{name:?} is the name of another unit; choose another");
        assert_eq!(said, [format!("disks[0].name: {reason}")]);
    }
    let many = "[[disks]]\npath = \"d\"\n".repeat(31);
    let refused = refusals(&many);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(
        refused[0].contains("all 31 PCI slots are taken"),
        "{refused:?}"
    );
}

fn cmdline(user: &str, disks: &[BootDisk]) -> Result<(String, Vec<String>), String> {
    let spec = spec("[[disks]]\npath = \"a\"\n");
    boot::command_line(user, &spec.devices, disks)
}

#[test]
fn console_and_root_are_added_and_explained() {
    let root = RootDisk::GptPartition {
        partuuid: "abc-01".into(),
        index: 1,
        sector_size: 512,
        read_only: false,
    };
    let (line, notes) = cmdline(
        "quiet",
        &[BootDisk {
            index: 0,
            root: Ok(root),
        }],
    )
    .unwrap();
    assert_eq!(line, "console=ttyS0 root=PARTUUID=abc-01 rw quiet");
    assert!(
        notes.iter().any(|n| n.contains("partition 1 of /dev/vda")),
        "{notes:?}"
    );

    let root = RootDisk::WholeDisk {
        file_system: FileSystem::Ext4,
    };
    let (line, _) = cmdline(
        "",
        &[BootDisk {
            index: 27,
            root: Ok(root),
        }],
    )
    .unwrap();
    assert_eq!(line, "console=ttyS0 root=/dev/vdab rw");
}

#[test]
fn what_the_user_says_is_kept_and_two_roots_are_refused() {
    let (line, _) = cmdline("console=hvc0 root=/dev/vdb", &[]).unwrap();
    assert_eq!(line, "console=hvc0 root=/dev/vdb");
    let refused = cmdline("root=/dev/vda quiet root=LABEL=x", &[]).unwrap_err();
    assert!(
        refused.contains("two root devices, `root=/dev/vda` and `root=LABEL=x`"),
        "{refused}"
    );
    assert!(cmdline("a\nb", &[]).is_err());
}

#[test]
fn a_disk_without_a_root_is_explained() {
    let root = Err("has neither partitions nor a known file system".into());
    let (line, notes) = cmdline("", &[BootDisk { index: 0, root }]).unwrap();
    assert_eq!(line, "console=ttyS0");
    assert!(
        notes
            .iter()
            .any(|n| n.contains("no root= added: disk 0 (/dev/vda) has neither"))
    );
}
