//! Reads the facts that matter out of a plan and an inspect tree, both given as JSON: what is absent there is
//! absent here, and nothing is an error.

use crate::scene::{Device, Machine};
use serde_json::Value;

/// How deep below a unit's node its transport may be.
const DEPTH: usize = 6;

fn text(value: &Value, key: &str) -> Option<String> {
    Some(value.get(key)?.as_str()?.to_owned())
}

/// A number, which an inspect tree may show as hexadecimal text.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
        other => other.as_u64(),
    }
}

/// `vda` to `vdzz`: the names Linux gives virtio disks (drivers/block/virtio_blk.c, `virtblk_name_format`).
fn disk_name(index: usize) -> String {
    let letter = |n: usize| char::from(b'a' + u8::try_from(n % 26).unwrap_or(0));
    match index {
        0..26 => format!("vd{}", letter(index)),
        _ => format!("vd{}{}", letter(index / 26 - 1), letter(index)),
    }
}

/// The name of a serial port in the guest, by its I/O port.
fn serial_name(config: &Value) -> Option<String> {
    let number = match config.get("port")?.as_u64()? {
        0x3f8 => 0,
        0x2f8 => 1,
        0x3e8 => 2,
        0x2e8 => 3,
        _ => return None,
    };
    Some(format!("ttyS{number}"))
}

/// The name of the TAP behind a network device, where the plan gives it.
fn tap(config: &Value) -> Option<String> {
    let backend = config.get("backend")?;
    (backend.get("kind")? == "tap").then_some(())?;
    text(backend.get("config")?, "name").filter(|name| !name.contains('%'))
}

/// What is at the host's end of a device.
fn host_end(config: &Value) -> Option<String> {
    let backend = match config.get("backend") {
        Some(backend) => backend,
        None => config.get("ports")?.get(0)?.get("backend")?,
    };
    let kind = text(backend, "kind");
    let settings = backend.get("config")?;
    text(settings, "path")
        .or_else(|| text(settings, "name"))
        .or(kind)
}

impl Machine {
    /// Takes the facts out of a plan (`MachinePlan` as JSON).
    pub fn from_plan(plan: &Value) -> Self {
        let boot = plan.get("boot").unwrap_or(&Value::Null);
        let list = |value: Option<&Value>| -> Vec<Value> {
            value.and_then(Value::as_array).cloned().unwrap_or_default()
        };
        let mut machine = Self {
            name: text(plan, "name").unwrap_or_default(),
            kernel: text(boot, "kernel").unwrap_or_default(),
            initrd: text(boot, "initrd"),
            cmdline: text(boot, "cmdline").unwrap_or_default(),
            memory: list(plan.get("layout").and_then(|layout| layout.get("ram")))
                .iter()
                .filter_map(|range| range.get("len")?.as_u64())
                .fold(0, u64::saturating_add),
            cpus: u32::try_from(list(plan.get("cpus")).len()).unwrap_or(u32::MAX),
            has_pci: false,
            devices: Vec::new(),
        };
        let (mut disks, mut consoles) = (0, 0);
        for placement in list(plan.get("placements")) {
            let config = placement.get("config").unwrap_or(&Value::Null);
            let kind = text(&placement, "kind").unwrap_or_default();
            machine.has_pci |= kind == "pci-host";
            let guest = match kind.as_str() {
                "serial" => serial_name(config),
                "virtio-blk" => {
                    disks += 1;
                    Some(disk_name(disks - 1))
                }
                "virtio-console" => {
                    consoles += 1;
                    Some(format!("hvc{}", consoles - 1))
                }
                _ => None,
            };
            machine.devices.push(Device {
                name: text(&placement, "name").unwrap_or_default(),
                guest,
                host: host_end(config),
                interface: tap(config),
                mac: text(config, "mac"),
                slot: text(&placement, "bdf"),
                kind,
                ..Device::default()
            });
        }
        machine
    }

    /// Adds what the devices say of themselves (an inspect tree as JSON, from its root or from `units`).
    pub fn observe(&mut self, inspect: &Value) {
        let units = inspect.get("units").unwrap_or(inspect);
        for device in &mut self.devices {
            let Some(node) = units.get(&device.name) else {
                continue;
            };
            let find = |key: &str| find_value(node, key, DEPTH).and_then(number);
            device.activations = find("activations").or(device.activations);
            if device.kind == "virtio-net" {
                device.to_guest = find("rx_frames").or(device.to_guest);
                device.from_guest = find("tx_frames").or(device.from_guest);
                // The backend knows what the kernel called it.
                let backend = find_value(node, "backend", DEPTH).and_then(Value::as_str);
                if let Some(name) = backend.and_then(|text| text.strip_prefix("tap ")) {
                    device.interface = Some(name.to_owned());
                }
            }
            if device.kind == "virtio-blk" {
                device.failed = find("failed").or(device.failed);
            }
        }
    }
}

/// The value of `key` in `node` or below it, nearest first.
fn find_value<'v>(node: &'v Value, key: &str, depth: usize) -> Option<&'v Value> {
    let fields = node.as_object()?;
    if let Some(value) = fields.get(key) {
        return Some(value);
    }
    let depth = depth.checked_sub(1)?;
    fields
        .values()
        .find_map(|child| find_value(child, key, depth))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_plan_and_a_tree_become_facts() {
        let plan = json!({
            "name": "web", "cpus": [{}, {}],
            "layout": { "ram": [{ "base": 0, "len": 3u64 << 30 }, { "base": 1u64 << 32, "len": 1u64 << 30 }] },
            "boot": { "kernel": "/k", "initrd": null, "cmdline": "root=/dev/vda" },
            "placements": [
                { "name": "pci-host", "kind": "pci-host", "config": {}, "bdf": null },
                { "name": "disk0", "kind": "virtio-blk", "bdf": "00:01.0",
                  "config": { "backend": { "kind": "raw", "config": { "path": "/a.img" } } } },
                { "name": "disk1", "kind": "virtio-blk", "config": {} },
                { "name": "net0", "kind": "virtio-net", "bdf": "00:02.0",
                  "config": { "backend": { "kind": "tap", "config": { "name": "x0" } }, "mac": "52:54:00:00:00:01" } },
                { "name": "com2", "kind": "serial", "config": { "port": 0x2f8, "backend": { "kind": "stdio", "config": {} } } },
                { "name": "console", "kind": "virtio-console",
                  "config": { "ports": [{ "backend": { "kind": "null", "config": {} } }] } },
            ],
        });
        let mut machine = Machine::from_plan(&plan);
        assert_eq!((machine.memory, machine.cpus), (4 << 30, 2));
        assert!(machine.has_pci && machine.initrd.is_none());
        let guests: Vec<_> = machine
            .devices
            .iter()
            .filter_map(|d| d.guest.clone())
            .collect();
        assert_eq!(guests, ["vda", "vdb", "ttyS1", "hvc0"]);
        let hosts: Vec<_> = machine
            .devices
            .iter()
            .filter_map(|d| d.host.clone())
            .collect();
        assert_eq!(hosts, ["/a.img", "x0", "stdio", "null"]);
        assert_eq!(machine.devices[3].interface.as_deref(), Some("x0"));
        machine.observe(&json!({ "units": {
            "disk0": { "pci": { "activations": "0x2", "device": { "failed": 3 } } },
            "net0": { "activations": 0, "device": { "backend": "tap nyx3", "rx_frames": 7, "tx_frames": 0 } },
        }}));
        let disk = &machine.devices[1];
        assert_eq!((disk.activations, disk.failed), (Some(2), Some(3)));
        let net = &machine.devices[3];
        assert_eq!(
            (net.activations, net.to_guest, net.from_guest),
            (Some(0), Some(7), Some(0))
        );
        assert_eq!(net.interface.as_deref(), Some("nyx3"));
        assert_eq!(machine.devices[2].activations, None);
    }

    #[test]
    fn anything_else_becomes_nothing() {
        for value in [
            Value::Null,
            json!([1]),
            json!({ "placements": 3, "boot": "x" }),
        ] {
            let mut machine = Machine::from_plan(&value);
            machine.observe(&value);
            assert!(machine.devices.is_empty());
        }
        assert_eq!(disk_name(27), "vdab");
    }
}
