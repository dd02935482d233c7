//! Asks the host about a machine's network: interfaces, neighbours, a connection. Best effort: what cannot be
//! read is absent.

use crate::scene::{Answer, Host, Interface, Machine, Neighbour, NeighbourState, Probe};
use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

/// Most entries of the neighbour table that are looked at.
const MOST_NEIGHBOURS: usize = 4096;

/// What the host's files say around a machine: the TAPs behind its network devices, and addresses on them that
/// were asked for in vain. Reads a few files of `/sys` and `/proc`, and sends nothing.
pub fn surroundings(machine: &Machine) -> Host {
    let names: Vec<&str> = machine
        .devices
        .iter()
        .filter_map(|device| device.interface.as_deref())
        .collect();
    if names.is_empty() {
        return Host::default();
    }
    let table = fs::read_to_string("/proc/net/arp").unwrap_or_default();
    Host {
        interfaces: names.iter().map(|name| interface(name)).collect(),
        neighbours: names
            .iter()
            .flat_map(|name| unanswered(&table, name))
            .collect(),
        ..Host::default()
    }
}

/// Addresses asked for on an interface, none of which was ever answered.
fn unanswered(table: &str, interface: &str) -> Vec<Neighbour> {
    let known: Vec<Neighbour> = table
        .lines()
        .skip(1)
        .take(MOST_NEIGHBOURS)
        .filter_map(|line| entry(line, None))
        .filter(|neighbour| neighbour.interface == interface)
        .collect();
    match known
        .iter()
        .any(|neighbour| neighbour.state != NeighbourState::Incomplete)
    {
        true => Vec::new(),
        false => known.into_iter().take(4).collect(),
    }
}

/// Looks at an interface of the host, such as the TAP of a machine.
pub fn interface(name: &str) -> Interface {
    interface_below(Path::new("/sys/class/net"), name)
}

fn interface_below(net: &Path, name: &str) -> Interface {
    let is_name =
        !name.is_empty() && name.len() < 16 && !name.contains('/') && !name.starts_with('.');
    let folder = net.join(name);
    let exists = is_name && folder.exists();
    let read = |file: &str| {
        fs::read_to_string(folder.join(file))
            .ok()
            .filter(|_| exists)
    };
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    // Flags as in if.h: 1 is IFF_UP.
    let flags = read("flags")
        .and_then(|text| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok());
    let is_up = flags.map(|flags| flags & 1 == 1);
    Interface {
        name: crate::text::clean(name, 64),
        exists,
        is_up,
        // The file cannot be read while the interface is down.
        carrier: number("carrier")
            .map(|carrier| carrier == 1)
            .or(match is_up {
                Some(false) => Some(false),
                _ => None,
            }),
        // What the host transmits, the guest receives.
        to_guest: number("statistics/tx_packets"),
        from_guest: number("statistics/rx_packets"),
    }
}

/// What the neighbour table says of an IPv4 address, if it was asked for. `expected` is the Ethernet address of
/// the guest's card.
pub fn neighbour(address: &str, expected: Option<&str>) -> Option<Neighbour> {
    neighbour_in(
        &fs::read_to_string("/proc/net/arp").ok()?,
        address,
        expected,
    )
}

/// Finds an address in the text of `/proc/net/arp` (proc(5)).
pub fn neighbour_in(table: &str, address: &str, expected: Option<&str>) -> Option<Neighbour> {
    let mut entries = table.lines().skip(1).take(MOST_NEIGHBOURS);
    entries.find_map(|line| entry(line, expected).filter(|found| found.address == address))
}

/// Reads a line of that file.
fn entry(line: &str, expected: Option<&str>) -> Option<Neighbour> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let &[address, _, flags, mac, _, interface] = columns.as_slice() else {
        return None;
    };
    // ATF_COM of if_arp.h: the entry is complete.
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
    Some(Neighbour {
        address: address.to_owned(),
        interface: interface.to_owned(),
        state: if flags & 2 == 2 {
            NeighbourState::Resolved {
                mac: mac.to_owned(),
            }
        } else {
            NeighbourState::Incomplete
        },
        expected: expected.map(str::to_owned),
    })
}

/// Tries a TCP connection, for at most `patience`.
pub fn connect(target: SocketAddr, patience: Duration) -> Probe {
    let answer = match TcpStream::connect_timeout(&target, patience) {
        Ok(_) => Answer::Open,
        Err(e) => match e.kind() {
            ErrorKind::ConnectionRefused => Answer::Refused,
            ErrorKind::TimedOut => Answer::TimedOut,
            _ => Answer::Unreachable,
        },
    };
    Probe {
        target: target.to_string(),
        answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const TABLE: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
10.9.0.2         0x1         0x0         00:00:00:00:00:00     *        nyx0
10.9.0.3         0x1         0x2         52:54:00:ab:cd:ef     *        nyx0
";

    #[test]
    fn the_neighbour_table_is_read() {
        let found = neighbour_in(TABLE, "10.9.0.2", Some("52:54:00:00:00:01")).unwrap();
        assert_eq!(
            (found.state, found.interface.as_str()),
            (NeighbourState::Incomplete, "nyx0")
        );
        let mac = "52:54:00:ab:cd:ef".to_owned();
        assert_eq!(
            neighbour_in(TABLE, "10.9.0.3", None).unwrap().state,
            NeighbourState::Resolved { mac }
        );
        assert_eq!(neighbour_in(TABLE, "10.9.0.4", None), None);
        assert_eq!(neighbour_in("x\n1 2 3\n", "1", None), None);
        // One that answers shows that the guest is there.
        assert!(unanswered(TABLE, "nyx0").is_empty());
        let mute = TABLE.replace("0x2 ", "0x0 ");
        assert_eq!(
            (
                unanswered(&mute, "nyx0").len(),
                unanswered(&mute, "nyx1").len()
            ),
            (2, 0)
        );
    }

    #[test]
    fn connections_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        assert_eq!(connect(target, Duration::from_secs(5)).answer, Answer::Open);
        drop(listener);
        let refused = connect(target, Duration::from_secs(5));
        assert_eq!(
            (refused.answer, refused.target),
            (Answer::Refused, target.to_string())
        );
    }

    #[test]
    fn interfaces_are_read() {
        let lo = interface("lo");
        assert!(lo.exists && lo.to_guest.is_some());
        assert!(
            !interface("nyx-none0").exists && !interface("../..").exists && !interface("").exists
        );
        let net = tempfile::tempdir().unwrap();
        let folder = net.path().join("nyx0");
        fs::create_dir_all(folder.join("statistics")).unwrap();
        for (file, text) in [
            ("flags", "0x1003\n"),
            ("carrier", "0\n"),
            ("statistics/tx_packets", "7\n"),
            ("statistics/rx_packets", "0\n"),
        ] {
            fs::write(folder.join(file), text).unwrap();
        }
        let tap = interface_below(net.path(), "nyx0");
        assert_eq!((tap.is_up, tap.carrier), (Some(true), Some(false)));
        assert_eq!((tap.to_guest, tap.from_guest), (Some(7), Some(0)));
    }
}
