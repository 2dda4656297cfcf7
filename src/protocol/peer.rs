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
    let mut text = AddressText::new();
    let IpAddr::V4(ip) = ip else {
        write!(text, "{ip}").expect("an address has at most 45 bytes");
        return text;
    };
    for (n, octet) in ip.octets().into_iter().enumerate() {
        let digit = |value: u8| char::from(b'0' + value % 10);
        if n > 0 {
            text.push('.');
        }
        if octet >= 100 {
            text.push(digit(octet / 100));
        }
        if octet >= 10 {
            text.push(digit(octet / 10));
        }
        text.push(digit(octet));
    }
    text
}
