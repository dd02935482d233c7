//! Addresses in configurations: `10.0.2.0/24`, `fd00::1/64`, `52:54:00:12:34:56`.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// An address and how many of its bits name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

impl FromStr for Cidr {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.split_once('/').ok_or(())?;
        let address: IpAddr = address.parse().map_err(drop)?;
        let prefix = prefix.parse().map_err(drop)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix > most {
            Err(())
        } else {
            Ok(Self { address, prefix })
        }
    }
}

/// The network mask of an IPv4 prefix length.
pub(crate) fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(
        u32::MAX
            .checked_shl(32 - u32::from(prefix.min(32)))
            .unwrap_or(0),
    )
}

/// Reads a MAC address of a station: six octets, not a group address (IEEE 802-2014 §8.2).
pub(crate) fn mac(text: &str) -> Option<[u8; 6]> {
    let mut octets = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut octets {
        let part = parts.next().filter(|p| p.len() == 2)?;
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && octets[0] & 1 == 0 && octets != [0; 6]).then_some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_and_masks() {
        let cidr: Cidr = "10.0.2.0/24".parse().unwrap();
        assert_eq!(
            (cidr.address, cidr.prefix),
            ("10.0.2.0".parse().unwrap(), 24)
        );
        assert!("fd00::1/64".parse::<Cidr>().is_ok());
        for bad in [
            "10.0.2.0",
            "10.0.2.0/33",
            "10.0.2/24",
            "fd00::/129",
            "/24",
            "10.0.2.0/",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(25), Ipv4Addr::new(255, 255, 255, 128));
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
    }

    #[test]
    fn station_addresses() {
        assert_eq!(
            mac("52:54:00:12:34:56"),
            Some([0x52, 0x54, 0, 0x12, 0x34, 0x56])
        );
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "53:54:00:12:34:56",
            "00:00:00:00:00:00",
            "52-54-00-12-34-56",
            "5:54:00:12:34:56",
            "gg:54:00:12:34:56",
        ] {
            assert_eq!(mac(bad), None, "{bad}");
        }
    }
}
