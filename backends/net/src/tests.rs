//! Frames through real TAP interfaces in a network namespace of their own, and through a real
//! slirp4netns.

use super::*;
use crate::tap::Tap;
use crate::user::{Forward, User};
use nyx_device::{NetLink, NetOffloads, NetQueue};
use nyx_memory::{DmaSpace, Extent, Memory, PinnedBuffers, RamConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use vm_memory::{Bytes, GuestAddress, Permissions};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const HEADER: usize = 12;

struct Guest {
    _memory: Memory,
    space: DmaSpace,
}

impl Guest {
    fn new() -> Self {
        let extents = vec![Extent {
            base: GuestAddress(0),
            len: 8 << 20,
        }];
        let memory = Memory::allocate(&RamConfig {
            extents,
            ..RamConfig::default()
        })
        .unwrap();
        let space = memory.space();
        Self {
            _memory: memory,
            space,
        }
    }

    fn buffers(&self, parts: &[(u64, usize)]) -> PinnedBuffers {
        let view = self.space.view();
        let mut buffers = view.buffers();
        for (at, len) in parts {
            view.pin(&mut buffers, GuestAddress(*at), *len, Permissions::Write)
                .unwrap();
        }
        buffers
    }

    /// A frame in two buffers.
    fn frame(&self, bytes: &[u8]) -> PinnedBuffers {
        let cut = bytes.len() / 2;
        self.space
            .view()
            .write_slice(&bytes[..cut], GuestAddress(0x1000))
            .unwrap();
        self.space
            .view()
            .write_slice(&bytes[cut..], GuestAddress(0x4_0000))
            .unwrap();
        self.buffers(&[(0x1000, cut), (0x4_0000, bytes.len() - cut)])
    }
}

fn is_readable(queue: &dyn NetQueue, seconds: i64) -> bool {
    let timeout = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let fd = queue.fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout))).unwrap() == 1
}

/// The next frame that `wanted` accepts, without `skip` bytes of header.
fn receive(queue: &mut dyn NetQueue, skip: usize, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let guest = Guest::new();
    loop {
        assert!(is_readable(queue, 20), "no such frame came");
        let buffers = guest.buffers(&[(0x100, 30), (0x2000, 0x1_4000)]);
        match queue.receive(&buffers) {
            Ok(len) => {
                let mut bytes = vec![0; len];
                buffers.read(&mut bytes);
                if wanted(&bytes[skip..]) {
                    return bytes.split_off(skip);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => panic!("{e}"),
        }
    }
}

fn arp_request(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut frame = [[0xff; 6], MAC].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([&MAC[..], &from, &[0; 6], &to].concat());
    frame
}

fn is_arp_reply(frame: &[u8], from: [u8; 4]) -> bool {
    frame.len() >= 42 && frame[12..14] == [8, 6] && frame[21] == 2 && frame[28..32] == from
}

fn arp_reply(request: &[u8], own: [u8; 4]) -> Vec<u8> {
    let mut frame = [&request[6..12], &MAC].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend([&MAC[..], &own, &request[22..32]].concat());
    frame
}

fn sum(bytes: &[u8], mut sum: u32) -> u16 {
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// An IPv4 UDP frame; the UDP checksum covers the pseudo-header only, as for checksum offload.
fn udp(dst: [u8; 6], from: ([u8; 4], u16), to: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + len).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend([from.0, to.0].concat());
    let checksum = !sum(&ip, 0);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let pseudo = sum(&[from.0, to.0].concat(), 17 + u32::from(len));
    let mut frame = [&dst[..], &MAC, &[8, 0], &ip].concat();
    for word in [from.1, to.1, len, pseudo] {
        frame.extend(word.to_be_bytes());
    }
    frame.extend(payload);
    frame
}

/// Runs `body` on a thread in a new network namespace, or says why not.
fn in_namespace(body: impl FnOnce() + Send + 'static) {
    let ran = std::thread::spawn(|| {
        // SAFETY: changes the namespace of this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            println!(
                "skipped: a network namespace needs root: {}",
                io::Error::last_os_error()
            );
            return;
        }
        body();
    });
    ran.join().unwrap();
}

fn tap(config: &str) -> Result<Tap, OpenError> {
    Tap::open(&serde_json::from_str(config).unwrap())
}

fn interfaces() -> Vec<String> {
    // Of this thread's namespace, as /proc/net is of the process's first thread.
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let name = |line: &str| line.split(':').next().unwrap().trim().to_owned();
    text.lines()
        .skip(2)
        .map(name)
        .filter(|name| name != "lo")
        .collect()
}

#[test]
fn frames_pass_through_a_tap_both_ways_with_the_header() {
    in_namespace(|| {
        let mut tap = tap(r#"{"address": "10.1.2.1/24", "mtu": 1400}"#).unwrap();
        assert_eq!(
            (tap.describe().as_str(), tap.queue_pairs(), tap.mtu()),
            ("tap nyx0", 1, Some(1400))
        );
        assert!(tap.offloads().vnet_header && tap.offloads().checksum && tap.offloads().tso4);
        let mut queues = tap.take_queues().unwrap();
        assert!(tap.take_queues().is_err(), "queues are handed out once");
        let queue = queues[0].as_mut();
        let guest = Guest::new();
        let header = [0; HEADER];

        let request = arp_request([10, 1, 2, 2], [10, 1, 2, 1]);
        queue
            .send(&guest.frame(&[&header[..], &request].concat()))
            .unwrap();
        let reply = receive(queue, HEADER, |f| is_arp_reply(f, [10, 1, 2, 1]));
        let host_mac: [u8; 6] = reply[6..12].try_into().unwrap();

        // To the host, with a checksum that the host has to complete: flags, gso_type, hdr_len,
        // gso_size, csum_start, csum_offset, num_buffers.
        let socket = UdpSocket::bind("10.1.2.1:4000").unwrap();
        let mut offload = header;
        (offload[0], offload[6], offload[8]) = (1, 34, 6);
        let frame = udp(
            host_mac,
            ([10, 1, 2, 2], 4001),
            ([10, 1, 2, 1], 4000),
            b"to the host",
        );
        queue
            .send(&guest.frame(&[&offload[..], &frame].concat()))
            .unwrap();
        let mut bytes = [0; 100];
        let (len, from) = socket.recv_from(&mut bytes).unwrap();
        assert_eq!(
            (&bytes[..len], from.to_string().as_str()),
            (&b"to the host"[..], "10.1.2.2:4001")
        );

        // From the host.
        socket.send_to(b"to the guest", "10.1.2.2:4001").unwrap();
        let frame = receive(queue, HEADER, |f| f[12..14] == [8, 0] && f[23] == 17);
        assert!(frame.ends_with(b"to the guest") && frame[..6] == MAC);

        // A frame that does not fit is dropped and reported, and the next one is whole.
        socket.send_to(&[7; 500], "10.1.2.2:4001").unwrap();
        socket.send_to(&[8; 20], "10.1.2.2:4001").unwrap();
        assert!(is_readable(queue, 5));
        let error = queue.receive(&guest.buffers(&[(0, 100)])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(
            receive(queue, HEADER, |f| f.ends_with(&[8; 20])).len(),
            14 + 20 + 8 + 20
        );
        let error = queue.receive_bytes(&mut [0; 2000]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

        // Nonsense from the guest is refused, not passed on.
        assert!(queue.send(&guest.frame(&[1; 20])).is_err());
        drop((tap, queues));
        assert_eq!(
            interfaces(),
            Vec::<String>::new(),
            "the interface goes with the last queue"
        );
    });
}

#[test]
fn several_queues_and_taking_some_out_of_service() {
    in_namespace(|| {
        let mut tap = tap(r#"{"name": "mq%d", "queues": 4, "address": "10.1.2.1/24"}"#).unwrap();
        assert_eq!((tap.describe().as_str(), tap.queue_pairs()), ("tap mq0", 4));
        let mut queues = tap.take_queues().unwrap();
        for queue in &mut queues[1..] {
            queue.set_in_service(false).unwrap();
            queue.set_in_service(false).unwrap();
        }
        queues[0]
            .set_offloads(NetOffloads {
                vnet_header: true,
                checksum: true,
                tso4: true,
                tso6: true,
                uso: false,
            })
            .unwrap();
        let guest = Guest::new();
        let socket = UdpSocket::bind("10.1.2.1:0").unwrap();
        // Many flows: with one queue in service, all come through it.
        let first = queues[0].as_mut();
        socket.send_to(b"x", "10.1.2.2:1").unwrap();
        let request = receive(first, HEADER, |f| f[12..14] == [8, 6] && f[21] == 1);
        let reply = [&[0; HEADER][..], &arp_reply(&request, [10, 1, 2, 2])].concat();
        first.send(&guest.frame(&reply)).unwrap();
        for port in 1..=32 {
            socket.send_to(b"x", ("10.1.2.2", port)).unwrap();
            receive(first, HEADER, |f| {
                f[12..14] == [8, 0] && f[36..38] == port.to_be_bytes()
            });
        }
        queues[3].set_in_service(true).unwrap();
        assert!(!is_readable(queues[1].as_ref(), 0));
    });
}

#[test]
fn prepared_and_passed_interfaces() {
    in_namespace(|| {
        let ip = |args: &str| {
            let done = Command::new("ip").args(args.split(' ')).output().unwrap();
            assert!(done.status.success(), "{args}: {done:?}");
        };
        ip("tuntap add dev prepared mode tap");
        let first = tap(r#"{"name": "prepared"}"#).unwrap();
        let error = tap(r#"{"name": "prepared"}"#).err().unwrap().to_string();
        assert_eq!(
            error,
            "TAP `prepared` is in use by another process: end it or choose another name"
        );
        let error = tap(r#"{"name": "prepared", "queues": 2}"#)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("mode tap multi_queue`, or set queues to 1"),
            "{error}"
        );
        drop(first);
        assert_eq!(interfaces(), ["prepared"], "a persistent interface stays");
        ip("tuntap add dev several mode tap multi_queue");
        let one = tap(r#"{"name": "several"}"#).unwrap();
        assert_eq!(one.queue_pairs(), 1);
        drop(one);
        let error = tap(r#"{"name": "lo"}"#).err().unwrap().to_string();
        assert_eq!(
            error,
            "TAP `lo` exists and is not a TAP interface: choose another name"
        );

        // Passed: the descriptor stays the caller's.
        let mut owner = tap(r#"{"name": "passed", "address": "10.1.3.1/24"}"#).unwrap();
        let queues = owner.take_queues().unwrap();
        let number = queues[0].fd().as_raw_fd();
        for _ in 0..2 {
            let mut passed = tap(&format!(r#"{{"fd": [{number}]}}"#)).unwrap();
            assert_eq!(passed.describe(), "tap passed");
            let mut own = passed.take_queues().unwrap();
            let request = [&[0; HEADER][..], &arp_request([10, 1, 3, 2], [10, 1, 3, 1])].concat();
            own[0].send(&Guest::new().frame(&request)).unwrap();
            receive(own[0].as_mut(), HEADER, |f| is_arp_reply(f, [10, 1, 3, 1]));
        }
        let error = tap(r#"{"fds": [0]}"#).err().unwrap().to_string();
        assert_eq!(error, "fds `0` is not an attached TAP interface");
        let error = tap(r#"{"fds": [9999]}"#).err().unwrap().to_string();
        assert!(error.starts_with("fds `9999` is not open"), "{error}");
    });
}

#[test]
fn a_deleted_interface_is_link_down_and_quiet() {
    in_namespace(|| {
        let mut tap = tap(r#"{"name": "doomed"}"#).unwrap();
        let mut queues = tap.take_queues().unwrap();
        assert_eq!(tap.link(), NetLink::Up);
        assert!(
            Command::new("ip")
                .args(["link", "del", "doomed"])
                .status()
                .unwrap()
                .success()
        );
        assert!(is_readable(queues[0].as_ref(), 5), "the worker is woken");
        let kinds: Vec<_> = (0..3)
            .map(|_| queues[0].receive_bytes(&mut [0; 2000]).unwrap_err().kind())
            .collect();
        use io::ErrorKind::{ConnectionReset, WouldBlock};
        assert_eq!(kinds, [ConnectionReset, WouldBlock, WouldBlock]);
        assert_eq!(tap.link(), NetLink::Down);
        assert!(!is_readable(queues[0].as_ref(), 0), "a worker would spin");
        queues[0].send(&Guest::new().frame(&[0; 100])).unwrap();
    });
}

#[test]
fn failures_leave_no_interface_behind() {
    in_namespace(|| {
        for (config, expected) in [
            (
                r#"{"name": "a-name-that-is-too-long"}"#,
                "name `a-name-that-is-too-long` is longer than 15 bytes: choose a shorter one",
            ),
            (
                r#"{"name": "a/b"}"#,
                "name `a/b` has a character that interface names cannot have: use letters, digits, `-` and `_`",
            ),
            (
                r#"{"name": "a%s"}"#,
                "name `a%s` may have one `%d` and no other `%`",
            ),
            (r#"{"queues": 0}"#, "queues `0` is not between 1 and 256"),
            (
                r#"{"queues": 257}"#,
                "queues `257` is not between 1 and 256",
            ),
            (
                r#"{"address": "10.1.2.1"}"#,
                "address `10.1.2.1` is not an address like 10.1.2.1/24",
            ),
            (
                r#"{"mac": "ff:ff:ff:ff:ff:ff"}"#,
                "mac `ff:ff:ff:ff:ff:ff` is not a station's address like 52:54:00:12:34:56",
            ),
            (
                r#"{"mtu": 20}"#,
                "mtu `20` is below the 68 bytes every link must carry",
            ),
            (
                r#"{"name": "x", "fds": [3]}"#,
                "name `x` cannot be given together with fds: drop one",
            ),
        ] {
            assert_eq!(tap(config).err().unwrap().to_string(), expected);
            assert_eq!(interfaces(), Vec::<String>::new());
        }
        // Refused only when the interface is there already.
        let error = tap(r#"{"mtu": 65535}"#).err().unwrap().to_string();
        assert!(
            error.starts_with("cannot set mtu 65535 of TAP `nyx0`: "),
            "{error}"
        );
        assert_eq!(interfaces(), Vec::<String>::new());
        // SAFETY: a plain system call: the ids of this thread only.
        let became_nobody = unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
        assert_eq!(became_nobody, 0);
        let error = tap("{}").err().unwrap().to_string();
        assert!(
            error.contains("ip tuntap add dev NAME mode tap user $USER`")
                || error.starts_with("device `/dev/net/tun` may not be opened"),
            "{error}"
        );
        assert_eq!(interfaces(), Vec::<String>::new());
    });
}

// User-mode networking -----------------------------------------------------------------------------

fn user(config: &str) -> Result<User, OpenError> {
    User::open(&serde_json::from_str(config).unwrap())
}

/// Fails if a directory for sockets stays. Other tests of this process have theirs for moments.
fn assert_nothing_left_behind() {
    let own = format!("nyx-net-{}-", std::process::id());
    let bases = [
        std::env::var("XDG_RUNTIME_DIR").unwrap_or_default(),
        "/tmp".to_owned(),
    ];
    let mut seen = None;
    for base in bases
        .iter()
        .flat_map(|base| std::fs::read_dir(base).into_iter().flatten())
    {
        let entry = base.unwrap();
        if entry.file_name().to_string_lossy().starts_with(&own) {
            seen = Some(entry.path());
            for _ in 0..500 {
                if !entry.path().exists() {
                    seen = None;
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
    assert_eq!(seen, None, "left behind");
}

fn has_slirp() -> bool {
    let found = Command::new("slirp4netns")
        .arg("--version")
        .output()
        .is_ok();
    if !found {
        println!("skipped: slirp4netns is not installed");
    }
    found
}

fn process_exists(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_user_network_answers_arp_and_dhcp() {
    if !has_slirp() {
        return;
    }
    let mut net = user(r#"{"network": "10.9.8.0/24", "mtu": 4000}"#).unwrap();
    assert_eq!(net.mtu(), Some(4000));
    assert_eq!(
        net.describe(),
        format!("user 10.9.8.0/24 (slirp4netns, process {})", net.pid())
    );
    assert_eq!(net.offloads(), NetOffloads::default());
    let mut queues = net.take_queues().unwrap();
    let queue = queues[0].as_mut();
    let guest = Guest::new();
    queue
        .send(&guest.frame(&arp_request([10, 9, 8, 15], [10, 9, 8, 2])))
        .unwrap();
    receive(queue, 0, |f| is_arp_reply(f, [10, 9, 8, 2]));

    // DHCPDISCOVER (RFC 2131 §2, RFC 2132 §9.6).
    let mut bootp = vec![0; 240];
    bootp[..4].copy_from_slice(&[1, 1, 6, 0]);
    bootp[4..8].copy_from_slice(b"nyx!");
    bootp[28..34].copy_from_slice(&MAC);
    bootp[236..240].copy_from_slice(&[99, 130, 83, 99]);
    bootp.extend([53, 1, 1, 255]);
    let mut frame = udp([0xff; 6], ([0; 4], 68), ([255; 4], 67), &bootp);
    // No checksum (RFC 768).
    frame[40..42].fill(0);
    queue.send(&guest.frame(&frame)).unwrap();
    let offer = receive(queue, 0, |f| {
        f.len() > 282 && f[23] == 17 && f[46..50] == *b"nyx!"
    });
    assert_eq!(
        (offer[42], &offer[58..62]),
        (2, &[10, 9, 8, 15][..]),
        "an offer of the fifteenth address"
    );
}

#[test]
fn a_forward_reaches_the_guest() {
    if !has_slirp() {
        return;
    }
    let free = || {
        std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    };
    let (tcp, udp_port) = (free(), free());
    let config = format!(r#"{{"forward": ["tcp:{tcp}:80", "udp:127.0.0.1:{udp_port}:53"]}}"#);
    let mut net = user(&config).unwrap();
    assert!(
        net.describe()
            .starts_with("user 10.0.2.0/24, 2 ports forwarded (")
    );
    let mut queues = net.take_queues().unwrap();
    let queue = queues[0].as_mut();
    let guest = Guest::new();
    // slirp learns where the guest is from the guest's own frames.
    queue
        .send(&guest.frame(&arp_request([10, 0, 2, 15], [10, 0, 2, 2])))
        .unwrap();
    receive(queue, 0, |f| is_arp_reply(f, [10, 0, 2, 2]));
    let client = std::thread::spawn(move || TcpStream::connect(("127.0.0.1", tcp)).map(drop));
    let syn = receive(queue, 0, |f| f[12..14] == [8, 0] && f[23] == 6);
    assert_eq!(
        (&syn[30..34], &syn[36..38]),
        (&[10, 0, 2, 15][..], &80u16.to_be_bytes()[..])
    );
    assert_eq!(syn[47] & 0x3f, 2, "a SYN");
    client.join().unwrap().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .send_to(b"question", ("127.0.0.1", udp_port))
        .unwrap();
    let datagram = receive(queue, 0, |f| f[12..14] == [8, 0] && f[23] == 17);
    assert!(datagram.ends_with(b"question") && datagram[36..38] == 53u16.to_be_bytes());
}

#[test]
fn nothing_outlives_a_user_network() {
    if !has_slirp() {
        return;
    }
    let mut net = user("{}").unwrap();
    let pid = net.pid();
    assert!(process_exists(pid));
    assert_nothing_left_behind();
    let mut queues = net.take_queues().unwrap();
    drop(net);
    assert!(!process_exists(pid), "killed and reaped");
    assert!(is_readable(queues[0].as_ref(), 5));
    let error = queues[0].receive_bytes(&mut [0; 2000]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_killed_stack_is_link_down_and_quiet() {
    if !has_slirp() {
        return;
    }
    let mut net = user("{}").unwrap();
    let mut queues = net.take_queues().unwrap();
    assert_eq!(net.link(), NetLink::Up);
    // SAFETY: a plain system call on our own child.
    unsafe { libc::kill(net.pid() as i32, libc::SIGKILL) };
    assert!(is_readable(queues[0].as_ref(), 5));
    let error = queues[0].receive_bytes(&mut [0; 2000]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(net.link(), NetLink::Down);
    assert!(!is_readable(queues[0].as_ref(), 0), "a worker would spin");
    queues[0].send(&Guest::new().frame(&[0; 100])).unwrap();
}

#[test]
fn a_killed_machine_takes_its_network_along() {
    if !has_slirp() {
        return;
    }
    if std::env::var_os("NYX_NET_TEST_HOLD").is_some() {
        let net = user("{}").unwrap();
        println!("pid={}", net.pid());
        std::thread::sleep(std::time::Duration::from_secs(60));
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tests::a_killed_machine_takes_its_network_along",
            "--nocapture",
        ])
        .env("NYX_NET_TEST_HOLD", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
    let pid = lines
        .map_while(Result::ok)
        .find_map(|line| line.split("pid=").nth(1).and_then(|pid| pid.parse().ok()))
        .unwrap();
    assert!(process_exists(pid));
    child.kill().unwrap();
    child.wait().unwrap();
    let ended = || {
        // Reparented: whoever adopted it may not have reaped it yet.
        std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |s| s.contains(") Z"))
    };
    let gone = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        ended()
    });
    assert!(gone, "slirp4netns outlived a SIGKILL of the machine");
}

#[test]
fn bad_user_networks_are_explained() {
    for (config, expected) in [
        (
            r#"{"network": "10.0.2.5/24"}"#,
            "network `10.0.2.5/24` has host bits set: use 10.0.2.0/24",
        ),
        (
            r#"{"network": "10.0.2.0/30"}"#,
            "network `10.0.2.0/30` must have a prefix length of 8 to 25",
        ),
        (
            r#"{"network": "fd00::/64"}"#,
            "network `fd00::/64` is not an IPv4 network like 10.0.2.0/24",
        ),
        (r#"{"mtu": 10}"#, "mtu `10` is not between 68 and 65521"),
        (
            r#"{"forward": ["8080:80"]}"#,
            "forward `8080:80` is not tcp|udp:[HOST:]PORT:[GUEST:]PORT, as in tcp:127.0.0.1:8080:80",
        ),
        (
            r#"{"program": "/nonexistent/slirp4netns"}"#,
            "`user` networking needs slirp4netns, and `/nonexistent/slirp4netns` is not there: `sudo apt-get install slirp4netns` installs it",
        ),
    ] {
        assert_eq!(user(config).err().unwrap().to_string(), expected);
    }
    let error = user(r#"{"program": "/bin/false"}"#)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.starts_with("`user` networking: /bin/false ended at once (exit status: 1)"),
        "{error}"
    );
    if has_slirp() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = user(&format!(r#"{{"forward": ["tcp:{port}:80"]}}"#))
            .err()
            .unwrap()
            .to_string();
        let expected = format!(
            "forward `tcp:{port}:80` cannot be set up: tcp port 127.0.0.1:{port} of the host is in use, choose another"
        );
        assert_eq!(error, expected);
    }
    assert_nothing_left_behind();
}

#[test]
fn forwards_are_read_in_all_their_forms() {
    let guest = Ipv4Addr::new(10, 0, 2, 15);
    let parse = |text: &str| Forward::parse(text, guest).map(|f| f.to_string());
    assert_eq!(
        parse("tcp:8080:80").unwrap(),
        "tcp 127.0.0.1:8080 -> 10.0.2.15:80"
    );
    assert_eq!(
        parse("udp:0.0.0.0:5353:53").unwrap(),
        "udp 0.0.0.0:5353 -> 10.0.2.15:53"
    );
    assert_eq!(
        parse("tcp:127.0.0.1:22:10.0.2.20:22").unwrap(),
        "tcp 127.0.0.1:22 -> 10.0.2.20:22"
    );
    for bad in [
        "",
        "tcp",
        "tcp:80",
        "sctp:80:80",
        "tcp:0:80",
        "tcp:80:0",
        "tcp:65536:80",
        "tcp:host:80:80",
        "tcp:1.2.3.4:80:1.2.3.4:80:80",
        "tcp::80:80",
    ] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

#[test]
fn unknown_kinds_and_keys_and_the_null_kind() {
    let spec = |kind: &str, config: &str| BackendSpec {
        kind: kind.to_owned(),
        config: serde_json::from_str(config).unwrap(),
    };
    let error = |spec: &BackendSpec| open(spec).err().unwrap().to_string();
    assert_eq!(
        error(&spec("bridge", "{}")),
        "`bridge` is not a network backend: use tap, user or null"
    );
    let text = error(&spec("user", r#"{"forwards": []}"#));
    assert!(
        text.contains("unknown field `forwards`, expected one of `network`, `forward`"),
        "{text}"
    );
    let mut null = open(&spec("null", "null")).unwrap();
    assert_eq!((null.link(), null.queue_pairs()), (NetLink::Down, 1));
    let mut queues = null.take_queues().unwrap();
    assert!(!is_readable(queues[0].as_ref(), 0));
    queues[0].send(&Guest::new().frame(&[0; 100])).unwrap();
    for kind in kinds() {
        serde_json::from_str::<serde_json::Value>(kind.example).unwrap();
    }
}
