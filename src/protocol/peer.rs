//! The other end of a client's connection, and addresses as text.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use arrayvec::ArrayString;

/// Text of an address. The longest is an IPv6 address that ends in an IPv4 address.
pub(super) type AddressText = ArrayString<45>;

/// The other end of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// The other end of a unix socket, which has no address.
    Unix,
}

impl Peer {
    /// Returns the address as text; `unix` for a unix socket.
    pub fn address(self) -> Cow<'static, str> {
        match self.ip() {
            Some(ip) => Cow::Owned(address_text(ip)),
            None => Cow::Borrowed("unix"),
        }
    }

    /// Returns the IP address; an IPv4-mapped IPv6 address as IPv4.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Peer::Tcp(address) => Some(address.ip().to_canonical()),
            Peer::Unix => None,
        }
    }

    pub fn port(self) -> Option<u16> {
        match self {
            Peer::Tcp(address) => Some(address.port()),
            Peer::Unix => None,
        }
    }
}

pub(crate) fn address_text(ip: IpAddr) -> String {
    short_text(ip).as_str().to_owned()
}

/// Returns the address as its `Display` writes it. That is slow for IPv4, and each request has several addresses.
pub(super) fn short_text(ip: IpAddr) -> AddressText {
    let IpAddr::V4(ip) = ip else {
        let mut text = AddressText::new();
        write!(text, "{ip}").expect("an address has at most 45 bytes");
        return text;
    };
    let (mut digits, mut length) = ([b'.'; "255.255.255.255".len()], 0);
    for octet in ip.octets() {
        for (least, power) in [(100, 100), (10, 10), (0, 1)] {
            if octet >= least {
                digits[length] = b'0' + octet / power % 10;
                length += 1;
            }
        }
        length += 1; // the dot
    }
    let text = std::str::from_utf8(&digits[..length - 1]).expect("digits and dots are text");
    AddressText::from(text).expect("an IPv4 address has at most 15 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_its_display_writes_it() {
        let octets = [0, 1, 9, 10, 19, 99, 100, 101, 110, 199, 200, 255];
        for (a, b) in octets.into_iter().flat_map(|a| octets.map(|b| (a, b))) {
            let ip = IpAddr::from([a, b, b, a]);
            assert_eq!(address_text(ip), ip.to_string());
        }
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        for ip in ["::1", "2001:db8::7", "::ffff:255.255.255.255", longest] {
            assert_eq!(address_text(ip.parse().unwrap()), ip);
        }
    }
}
