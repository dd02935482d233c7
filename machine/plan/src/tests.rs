//! Layout, placement and the command line, on made-up kinds.

use super::*;
use nyx_boot::disk_probe::{FileSystem, RootDisk};
use nyx_device::{
    AnyKind, Attach, BarDemand, BarSpace, Bdf, BoxError, ConfigError, Demand, Device, DeviceKind,
    Erased, FunctionDemand, IrqDemand, Placement, Space, Window, Wiring,
};
use nyx_spec::{DeviceSpec, Role, VmSpec, parse_toml};
use proptest::prelude::*;
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
kind!(Hotplug, "pci-hotplug", |_, _| Demand {
    windows: vec![fixed(Space::Pio, 0xae00, 0x18)],
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
// All three spaces, and lengths below a page.
kind!(Mixed, "mixed", |c, _| {
    let len = 1u64 << c["bits"].as_u64().unwrap();
    let bar = |index, len, space| BarDemand {
        index,
        len,
        space,
        prefetchable: false,
    };
    Demand {
        pci: Some(FunctionDemand {
            bars: vec![
                bar(0, len, BarSpace::Memory32),
                bar(1, len.min(256), BarSpace::Io),
                bar(2, len, BarSpace::Memory64),
            ],
            ..FunctionDemand::default()
        }),
        ..Demand::default()
    }
});
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
    &Erased::<Hotplug>::new(),
    &Erased::<Mixed>::new(),
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

fn device(name: &str, kind: &str, config: Value) -> DeviceSpec {
    DeviceSpec {
        name: name.into(),
        kind: kind.into(),
        config,
        role: Role::Other,
        field: "disk".into(),
    }
}

/// Everything that a plan gives away: space, first, behind the last, of whom.
fn given(plan: &MachinePlan) -> Vec<(Space, u64, u64, String)> {
    let mut given = Vec::new();
    for p in &plan.placements {
        for window in &p.demand.windows {
            let base = p.windows[&window.region];
            given.push((window.space, base, base + window.len, p.name.clone()));
        }
        for bar in p.demand.pci.iter().flat_map(|f| f.all_bars()) {
            let space = if bar.space == BarSpace::Io {
                Space::Pio
            } else {
                Space::Mmio
            };
            let base = p.bars[&bar.index];
            assert!(base.is_multiple_of(bar.len), "{}: {base:#x}", p.name);
            given.push((space, base, base + bar.len, p.name.clone()));
        }
    }
    given
}

fn assert_sound(plan: &MachinePlan) {
    let given = given(plan);
    for (index, (space, base, end, name)) in given.iter().enumerate() {
        for (other_space, other_base, other_end, other) in &given[index + 1..] {
            let apart = space != other_space || end <= other_base || other_end <= base;
            assert!(
                apart,
                "{name} at {base:#x} meets {other} at {other_base:#x}"
            );
        }
    }
    let mut slots: Vec<_> = plan.placements.iter().filter_map(|p| p.bdf).collect();
    let (all, windows) = (slots.len(), plan.layout.mmio32);
    slots.sort();
    slots.dedup();
    assert_eq!(slots.len(), all);
    for p in plan.placements.iter().filter(|p| slot_of(p).is_some()) {
        let low = p.bars.get(&0).copied().unwrap_or(windows.base);
        assert!((windows.base..windows.end()).contains(&low));
        let pin = p.demand.pci.as_ref().is_some_and(|f| f.intx);
        assert_eq!(p.irqs.contains_key("intx"), pin);
    }
}

#[test]
fn an_added_device_gets_what_is_free_and_a_removed_one_leaves_room() {
    let mut plan = plan("[[disks]]\npath = \"a\"\n[[disks]]\npath = \"b\"\n");
    let before = plan.clone();
    let added = plan
        .place(&device("d", "virtio-blk", Value::Null), CATALOG)
        .unwrap();
    assert_eq!(plan, before, "placing changes nothing");
    // disk0, disk1 and rng are in slots 1 to 3.
    assert_eq!((added.bdf, added.irqs["intx"]), (Some(Bdf::new(4, 0)), 16));
    plan.add(added.clone());
    assert_sound(&plan);
    assert_eq!(plan.in_slot(4), Some(&added));
    let first = plan.remove("disk0").unwrap();
    let second = plan
        .place(&device("e", "virtio-blk", Value::Null), CATALOG)
        .unwrap();
    assert_eq!((second.bdf, &second.bars), (first.bdf, &first.bars));
    plan.add(second);
    assert_sound(&plan);
}

#[test]
fn additions_and_removals_that_cannot_be_are_refused_in_one_sentence() {
    let mut full = plan("[[disks]]\npath = \"a\"\n");
    let place = |plan: &MachinePlan, name: &str, kind: &str| {
        let placed = plan.place(&device(name, kind, Value::Null), CATALOG);
        placed.map(|_| ()).unwrap_err().to_string()
    };
    for name in ["disk0", "pm", "vcpu7", "clock"] {
        let said = format!("disk.name: {name:?} is the name of another unit; choose another");
        assert_eq!(place(&full, name, "virtio-blk"), said);
    }
    for kind in ["vmgenid", "host-bridge"] {
        let said = place(&full, "x", kind);
        assert!(said.contains("cannot come to a running machine"), "{said}");
    }
    assert_eq!(
        place(&full, "x", "bicycle"),
        "disk: there is no device of kind \"bicycle\""
    );
    let removed = |name: &str| full.removable(name).unwrap_err().to_string();
    assert_eq!(removed("x"), "there is no device called \"x\"");
    for name in ["ioapic", "host-bridge", "pci-host", "pci-hotplug", "com1"] {
        let said = format!("{name} is part of the platform and stays for as long as the machine");
        assert_eq!(removed(name), said);
    }
    for n in 0..29 {
        let spec = device(&format!("d{n}"), "virtio-blk", Value::Null);
        let placement = full.place(&spec, CATALOG).unwrap();
        full.add(placement);
    }
    assert_sound(&full);
    let said = place(&full, "x", "virtio-blk");
    assert_eq!(said, "all 31 PCI slots are taken; remove a device first");

    let mut mmio = plan("transport = \"mmio\"\n[[disks]]\npath = \"a\"\n");
    assert!(place(&mmio, "x", "virtio-blk").contains("started without (transport = \"mmio\""));
    let kept = mmio.remove("disk0").unwrap_err();
    assert_eq!(kept, RemoveError::NoHotplug);
}

#[test]
fn a_window_that_is_full_is_said_and_a_hole_in_it_is_used() {
    let mut plan = plan("rng = false\n");
    let spec = |name: &str, bits: u32| device(name, "mixed", serde_json::json!({ "bits": bits }));
    // 1004 MiB of 32-bit window: three times 256 MiB fit.
    for name in ["a", "b", "c"] {
        let placement = plan.place(&spec(name, 28), CATALOG).unwrap();
        plan.add(placement);
    }
    let said = plan.place(&spec("d", 28), CATALOG).unwrap_err();
    assert_eq!(
        said.to_string(),
        "the 32-bit device window is full; remove a device first"
    );
    let hole = plan.remove("b").unwrap();
    let placement = plan.place(&spec("d", 28), CATALOG).unwrap();
    assert_eq!(placement.bars[&0], hole.bars[&0]);
    plan.add(placement);
    assert_sound(&plan);
}

proptest! {
    #[test]
    fn what_comes_and_goes_never_overlaps_nor_moves_others(
        steps in proptest::collection::vec((any::<bool>(), 0usize..40, 2u32..27), 1..120)
    ) {
        let mut plan = plan("[[disks]]\npath = \"a\"\n");
        for (add, which, bits) in steps {
            let before = plan.clone();
            let name = format!("d{which}");
            if add {
                let kind = if bits % 2 == 0 { "mixed" } else { "virtio-blk" };
                let spec = device(&name, kind, serde_json::json!({ "bits": bits }));
                if let Ok(placement) = plan.place(&spec, CATALOG) {
                    plan.add(placement);
                    prop_assert_eq!(&plan.placements[..before.placements.len()], &before.placements[..]);
                }
            } else if plan.remove(&name).is_ok() {
                let others: Vec<_> = before.placements.iter().filter(|p| p.name != name).collect();
                prop_assert_eq!(others, plan.placements.iter().collect::<Vec<_>>());
            }
            assert_sound(&plan);
        }
    }
}
