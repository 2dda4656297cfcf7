//! The other end of a client's connection, and addresses as text.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

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
    let mut text = String::with_capacity("255.255.255.255".len());
    push_address(&mut text, ip);
    text
}

/// Appends the address as its `Display` writes it. That is slow for IPv4, and each request has several addresses.
pub(super) fn push_address(text: &mut String, ip: IpAddr) {
    let IpAddr::V4(ip) = ip else { return text.push_str(&ip.to_string()) };
    let mut digits = itoa::Buffer::new();
    for (n, octet) in ip.octets().into_iter().enumerate() {
        if n > 0 {
            text.push('.');
        }
        text.push_str(digits.format(octet));
    }
}
