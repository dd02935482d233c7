//! Reading, defaults and every refusal.

use super::*;

fn refusals(toml: &str) -> Vec<String> {
    let config = parse_toml(toml).unwrap();
    config
        .validate()
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn a_small_file_gets_the_expected_defaults() {
    let spec = parse_toml(
        "cpus = 2\nmemory = \"1G\"\n[boot]\nkernel = \"k\"\n[[disks]]\npath = \"d.img\"\n\
         [[nets]]\nkind = \"user\"\nforward = [\"tcp::8080:80\"]\n",
    )
    .unwrap()
    .validate()
    .unwrap();
    assert_eq!(spec.name, "nyx");
    assert_eq!(
        spec.cpus,
        CpuSpec {
            count: 2,
            sockets: 1,
            cores: 2,
            threads: 1
        }
    );
    assert_eq!(spec.memory.size, 1 << 30);
    let kinds: Vec<_> = spec.devices.iter().map(|d| (&*d.name, &*d.kind)).collect();
    assert_eq!(
        kinds,
        [
            ("disk0", "virtio-blk"),
            ("net0", "virtio-net"),
            ("rng", "virtio-rng"),
            ("com1", "serial")
        ]
    );
    let mac = spec.devices[1].config["mac"].as_str().unwrap();
    assert!(mac.starts_with("52:54:00:"), "{mac}");
    assert_eq!(mac, MacAddress::stable("nyx/net0").to_string());
}

#[test]
fn all_problems_are_reported_at_once_with_field_value_and_mend() {
    let said = refusals(
        "cpus = 0\nmemory = 4194305\n[boot]\n[[disks]]\nname = \"a\"\npath = \"x\"\nblock_size = 77\n\
         [[disks]]\nname = \"a\"\npath = \"y\"\n[[nets]]\nkind = \"user\"\ntap = \"t0\"\n",
    );
    assert_eq!(
        said,
        [
            "cpus: 0 is not a number of vCPUs; use 1 or more",
            "memory: 4194305 bytes are not a multiple of the 4096-byte page; use 4194304",
            "boot.kernel: there is nothing to boot; name a kernel (--kernel PATH)",
            "disks[0].block_size: 77 is neither 512 nor 4096",
            "nets[0].tap: it is for tap networks only",
            "disks[1].name: \"a\" is the name of another device; choose another",
        ]
    );
}

#[test]
fn a_bare_number_of_megabytes_is_explained() {
    let said = refusals("memory = 512\n[boot]\nkernel = \"k\"\n");
    assert_eq!(
        said,
        ["memory: 512 bytes are too little; use at least 4M; write \"512M\" for MiB"]
    );
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_and_the_line() {
    let error = parse_toml("name = \"x\"\nmemroy = \"1G\"\n")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("line 2: unknown field `memroy`"),
        "{error}"
    );
    assert!(error.ends_with("did you mean `memory`?"), "{error}");
    let error = parse_json("{\"boot\":{\"kernal\":\"k\"}}")
        .unwrap_err()
        .to_string();
    assert!(error.contains("did you mean `kernel`?"), "{error}");
}

#[test]
fn macs_are_checked() {
    for (text, why) in [
        ("52:54:00:12:34", "six pairs"),
        ("52:54:00:12:34:5g", "six pairs"),
        ("53:54:00:12:34:56", "group address"),
        ("00:00:00:00:00:00", "all zeroes"),
        ("52:54:00:12:34:56:78", "six pairs"),
    ] {
        let error = text.parse::<MacAddress>().unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(
        "52-54-00-AB-cd-01"
            .parse::<MacAddress>()
            .unwrap()
            .to_string(),
        "52:54:00:ab:cd:01"
    );
}

#[test]
fn flags_read_like_the_file() {
    let disk: DiskConfig = parse_options(
        "a.img,readonly,serial=S1,queues=2,block-size=4096",
        "path",
        &[],
    )
    .unwrap();
    assert!(disk.readonly);
    assert_eq!((disk.queues, disk.block_size), (Some(2), Some(4096)));
    let net: NetConfig = parse_options(
        "user,forward=tcp::1:2,forward=udp::3:4",
        "kind",
        &["forward"],
    )
    .unwrap();
    assert_eq!(net.forward, ["tcp::1:2", "udp::3:4"]);
    let disk: DiskConfig =
        parse_options("007,serial=20241121,name=on,direct=off", "path", &[]).unwrap();
    assert_eq!(
        (
            disk.path.to_str(),
            disk.serial.as_deref(),
            disk.name.as_deref(),
            disk.direct
        ),
        (Some("007"), Some("20241121"), Some("on"), false),
        "text that looks like something else stays text"
    );
    let net: NetConfig =
        parse_options("tap,fds=3,fds=4,mac=52:54:00:12:34:56", "kind", &["fds"]).unwrap();
    assert_eq!(net.fds.as_deref(), Some(&[3, 4][..]));
    for (text, why) in [
        (
            "a,queues=70000",
            "invalid value: integer `70000`, expected u16",
        ),
        (
            "a,queues=many",
            "invalid type: string \"many\", expected u16",
        ),
        ("a,queues", "invalid type: boolean `true`, expected u16"),
        (
            "a,readonly=perhaps",
            "invalid type: string \"perhaps\", expected a boolean",
        ),
        ("a,engine=uring", "did you mean `io_uring`?"),
    ] {
        let said = parse_options::<DiskConfig>(text, "path", &[])
            .unwrap_err()
            .to_string();
        assert!(said.contains(why), "{text}: {said}");
    }
    let error = parse_options::<DiskConfig>("a.img,readonyl", "path", &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("did you mean `readonly`?"), "{error}");
    let twice = parse_options::<DiskConfig>("a.img,path=b.img", "path", &[]).unwrap_err();
    assert_eq!(
        twice.to_string(),
        "\"a.img,path=b.img\": path is given twice"
    );
}

#[test]
fn sizes_read_as_people_write_them() {
    for (text, bytes) in [
        ("512M", 512 << 20),
        ("4G", 4 << 30),
        ("1GiB", 1 << 30),
        ("64mb", 64 << 20),
        ("7", 7),
    ] {
        assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
    }
    for text in ["", "G", "4X", "-1", "99999999999T", "4 0"] {
        assert!(text.parse::<ByteSize>().is_err(), "{text}");
    }
    assert_eq!(ByteSize(3 << 29).to_string(), "1536M");
}

#[test]
fn topology_must_multiply_up() {
    let huge = "{ count = 1, sockets = 4294967295, cores = 4294967295, threads = 4294967295 }";
    let said = refusals(&format!("cpus = {huge}\n[boot]\nkernel = \"k\"\n"));
    assert!(
        said[0].contains("make the product equal the count"),
        "{said:?}"
    );
    let said = refusals("cpus = { count = 6, sockets = 2, cores = 2 }\n[boot]\nkernel = \"k\"\n");
    assert_eq!(
        said,
        [
            "cpus: 2 sockets of 2 cores of 1 threads are 4 vCPUs, not 6; make the product equal the count"
        ]
    );
}

#[test]
fn more_than_four_serial_ports_are_refused() {
    let consoles = "[[consoles]]\nkind = \"null\"\n".repeat(5);
    let said = refusals(&format!("[boot]\nkernel = \"k\"\n{consoles}"));
    assert_eq!(said.len(), 1);
    assert!(
        said[0].starts_with("consoles[4]: there are only four"),
        "{said:?}"
    );
}
