//! The UDP socket: many packets in one system call, out (`UDP_SEGMENT`, `sendmmsg`) and in (`recvmmsg`, `UDP_GRO`).
//!
//! What always holds: packets are never fragmented on the way; what a path does not take as a large packet is sent as
//! single ones, and that is remembered; IPv4 peers are IPv4 addresses whatever the socket is.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::Arc,
};

use arc_swap::ArcSwap;

use super::{check, check_int};
use crate::{OverlayError, Result};

/// The kernel takes so many segments in one message.
const MOST_SEGMENTS: usize = 64;
/// Bytes of one message: what fits an IPv4 packet.
const MOST_MESSAGE_BYTES: usize = 65_507;
/// Messages in one call.
const MOST_MESSAGES: usize = 64;
/// Messages received in one call.
const INBOX_MESSAGES: usize = 32;
/// Room for the largest message.
const INBOX_MESSAGE_BYTES: usize = 1 << 16;
/// Packets wait here before they are sent.
const OUTBOX_BYTES: usize = 256 << 10;
/// A batch is sent when it has grown to this.
const ENOUGH_BYTES: usize = 60 << 10;
const SOCKET_BUFFER_BYTES: libc::c_int = 8 << 20;
const ANCILLARY_BYTES: usize = 64;
/// Destinations remembered that take no large packets.
const MOST_PLAIN: usize = 256;

/// Bytes for two control messages: one that holds an int, and one with an address.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Ancillary([u8; ANCILLARY_BYTES]);

/// Sockets by the destinations that only they reach.
type Others = BTreeMap<SocketAddr, Arc<Udp>>;

/// A bound socket.
#[derive(Debug)]
pub struct Udp {
    socket: OwnedFd,
    is_v6: bool,
    local: SocketAddr,
    others: ArcSwap<Others>,
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Udp {
    /// Binds to an address; an IPv6 wildcard hears IPv4 too, and where IPv6 is off its IPv4 sibling is taken.
    ///
    /// # Errors
    /// If the address is taken or not ours.
    pub fn bind(listen: SocketAddr) -> Result<Self> {
        Self::bind_or_sibling(listen, false)
    }

    /// As [`Self::bind`]; on a wildcard each packet is told with the address that it came to, so that the answer can
    /// leave from there.
    ///
    /// # Errors
    /// If the address is taken or not ours.
    pub fn bind_knowing(listen: SocketAddr) -> Result<Self> {
        Self::bind_or_sibling(listen, listen.ip().is_unspecified())
    }

    fn bind_or_sibling(listen: SocketAddr, is_knowing: bool) -> Result<Self> {
        let bound = Self::bind_to(listen, is_knowing).or_else(|error| {
            let is_wildcard = listen.is_ipv6() && listen.ip().is_unspecified();
            let has_no_v6 = matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL));
            if !is_wildcard || !has_no_v6 {
                return Err(error);
            }
            Self::bind_to((Ipv4Addr::UNSPECIFIED, listen.port()).into(), is_knowing)
        });
        bound.map_err(OverlayError::io(format!("listen on UDP {listen}")))
    }

    fn bind_to(listen: SocketAddr, is_knowing: bool) -> io::Result<Self> {
        let family = if listen.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
        // SAFETY: a plain call; what is returned is a new descriptor or an error.
        let made = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        check_int(made)?;
        // SAFETY: it was made just now and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(made) };
        let is_v6 = listen.is_ipv6();
        let set = |level, name, value| set(&socket, level, name, value);
        if is_v6 {
            set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
            set(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        }
        match is_knowing {
            // Tells of IPv4 too, as mapped addresses.
            true if is_v6 => set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?,
            true => set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?,
            false => {}
        }
        // Probes find what a path takes; the kernel's own guess would hide from them that it grew.
        set(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
        for (forced, plain) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            set(libc::SOL_SOCKET, forced, SOCKET_BUFFER_BYTES)
                .or_else(|_| set(libc::SOL_SOCKET, plain, SOCKET_BUFFER_BYTES))?;
        }
        // An old kernel without it still works, with a call for each packet.
        let _ = set(libc::SOL_UDP, libc::UDP_GRO, 1);
        let (name, bytes) = to_system(listen, is_v6);
        // SAFETY: the address is a valid `sockaddr_in6` or `sockaddr_in` of so many bytes.
        check_int(unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), bytes) })?;
        let local = local(&socket)?;
        Ok(Self { socket, is_v6, local, others: ArcSwap::default() })
    }

    /// Where it listens.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether it can send to this address.
    pub fn reaches(&self, to: SocketAddr) -> bool {
        self.is_v6 || to.is_ipv4()
    }

    /// From now on everything for these destinations leaves by these sockets; nothing else does.
    pub fn divert(&self, others: Others) {
        self.others.store(Arc::new(others));
    }

    /// The socket for the first of some messages, and how many of them leave by it.
    fn for_first<'a>(&'a self, others: &'a Others, messages: &[Message]) -> (&'a Self, usize) {
        let Some(first) = messages.first().filter(|_| !others.is_empty()) else {
            return (self, messages.len());
        };
        let other = others.get(&first.to);
        let is_same = |message: &&Message| match other {
            Some(_) => message.to == first.to,
            None => !others.contains_key(&message.to),
        };
        (other.map_or(self, |other| other), messages.iter().take_while(is_same).count())
    }

    /// Sends one packet.
    ///
    /// # Errors
    /// If the system does not take it.
    pub fn send(&self, to: SocketAddr, packet: &[u8]) -> io::Result<()> {
        if let Some(other) = self.others.load().get(&to) {
            return other.send(to, packet);
        }
        if !self.reaches(to) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let (name, bytes) = to_system(to, self.is_v6);
        // SAFETY: packet and address are valid for their lengths during the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const name).cast(),
                bytes,
            )
        };
        check(sent).map(drop)
    }

    /// Ends receiving, for whoever waits for packets now and from now on.
    pub fn shut(&self) {
        // SAFETY: a plain call. It says that the socket is not connected, and wakes who waits nevertheless.
        unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

fn set(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let bytes = length::<libc::c_int>();
    // SAFETY: the option's value is an int that lives during the call.
    check_int(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), bytes) })
}

fn length<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

fn local(socket: &OwnedFd) -> io::Result<SocketAddr> {
    let (mut name, mut bytes) = (empty_name(), length::<libc::sockaddr_in6>());
    // SAFETY: the call writes at most `bytes` bytes to `name`.
    check_int(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut name).cast(), &raw mut bytes) })?;
    from_system(&name).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

const fn empty_name() -> libc::sockaddr_in6 {
    libc::sockaddr_in6 {
        sin6_family: 0,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
        sin6_scope_id: 0,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the families are small numbers")]
fn to_system(address: SocketAddr, is_v6: bool) -> (libc::sockaddr_in6, libc::socklen_t) {
    let mut name = empty_name();
    if !is_v6 && let SocketAddr::V4(v4) = address {
        let four = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: v4.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
            sin_zero: [0; 8],
        };
        // SAFETY: a `sockaddr_in` is shorter than the `sockaddr_in6` that it is written over, and both are plain data.
        unsafe { (&raw mut name).cast::<libc::sockaddr_in>().write_unaligned(four) };
        return (name, length::<libc::sockaddr_in>());
    }
    name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
    name.sin6_port = address.port().to_be();
    name.sin6_addr.s6_addr = match address {
        SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(v6) => v6.ip().octets(),
    };
    if let SocketAddr::V6(v6) = address {
        name.sin6_scope_id = v6.scope_id();
    }
    (name, length::<libc::sockaddr_in6>())
}

/// The address without scope and flow, which say nothing about who it is; an IPv4 one as such.
fn from_system(name: &libc::sockaddr_in6) -> Option<SocketAddr> {
    match i32::from(name.sin6_family) {
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
            Some(SocketAddr::new(ip, u16::from_be(name.sin6_port)))
        }
        libc::AF_INET => {
            // SAFETY: of this family it is a `sockaddr_in`, which is shorter.
            let four = unsafe { (&raw const *name).cast::<libc::sockaddr_in>().read_unaligned() };
            let ip = Ipv4Addr::from(u32::from_be(four.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(four.sin_port)))
        }
        _ => None,
    }
}

/// Packets that wait to be sent together.
#[derive(Debug)]
pub struct Outbox {
    arena: Box<[u8]>,
    used: usize,
    messages: Vec<Message>,
    /// Who takes no large packets.
    plain: BTreeSet<SocketAddr>,
}

/// Packets of one size for one destination, the last may be shorter.
#[derive(Clone, Debug)]
struct Message {
    from: Option<IpAddr>,
    to: SocketAddr,
    bytes: Range<usize>,
    segment: usize,
}

/// A message that the system did not take.
#[derive(Debug)]
pub struct Refused {
    /// For whom it was.
    pub to: SocketAddr,
    /// Packets in it.
    pub packets: usize,
    /// Why.
    pub error: io::Error,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            arena: vec![0; OUTBOX_BYTES].into(),
            used: 0,
            messages: Vec::with_capacity(MOST_MESSAGES),
            plain: BTreeSet::new(),
        }
    }
}

impl Outbox {
    /// Whether it is time to send: much waits, or no other packet of the largest size might fit.
    pub fn is_full(&self) -> bool {
        self.used >= ENOUGH_BYTES || self.messages.len() >= MOST_MESSAGES
    }

    /// Whether so many packets of so many bytes in all fit.
    pub fn fits(&self, packets: usize, bytes: usize) -> bool {
        self.used + bytes <= self.arena.len()
            && self.messages.len() + packets.div_ceil(MOST_SEGMENTS) < MOST_MESSAGES
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Room for a packet, to be filled before anything else is asked of the outbox.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn add(&mut self, to: SocketAddr, bytes: usize) -> &mut [u8] {
        self.add_from(None, to, bytes)
    }

    /// As [`Self::add`], for a packet that leaves from an address of ours that a packet came to.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn add_from(&mut self, from: Option<IpAddr>, to: SocketAddr, bytes: usize) -> &mut [u8] {
        let range = self.used..self.used + bytes;
        self.used = range.end;
        match self.messages.last_mut().filter(|last| last.from == from && last.takes(to, bytes)) {
            Some(last) => last.bytes.end = range.end,
            None => self.messages.push(Message { from, to, bytes: range.clone(), segment: bytes }),
        }
        &mut self.arena[range]
    }

    /// Sends what waits; what the system did not take is lost and told.
    pub fn flush(&mut self, udp: &Udp, mut refused: impl FnMut(Refused)) {
        let messages = mem::take(&mut self.messages);
        let mut rest = &messages[..];
        let others = udp.others.load();
        while let Some(next) = rest.first() {
            let (udp, run) = udp.for_first(&others, rest);
            let is_plain = next.packets() > 1 && self.plain.contains(&next.to);
            let sent = if is_plain { 0 } else { send_messages(udp, &self.arena, &rest[..run]) };
            rest = &rest[sent..];
            if sent == 0 {
                // The first one has something about it: it is sent by itself, and its packets one by one if need be.
                if let Err(error) = self.send_alone(udp, next, is_plain) {
                    refused(Refused { to: next.to, packets: next.packets(), error });
                }
                rest = &rest[1..];
            }
        }
        self.messages = messages;
        self.messages.clear();
        self.used = 0;
    }

    fn send_alone(&mut self, udp: &Udp, message: &Message, is_plain: bool) -> io::Result<()> {
        if !udp.reaches(message.to) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        if !is_plain {
            match send_message(udp, &self.arena, message) {
                Ok(()) => return Ok(()),
                Err(error) if message.packets() == 1 || !refuses_large(&error) => return Err(error),
                Err(_) => {}
            }
        }
        let singles: Vec<Message> = message.singles().collect();
        let mut rest = &singles[..];
        while !rest.is_empty() {
            let sent = send_messages(udp, &self.arena, &rest[..rest.len().min(MOST_MESSAGES)]);
            if sent == 0 {
                send_message(udp, &self.arena, &rest[0])?;
            }
            rest = &rest[sent.max(1)..];
        }
        if self.plain.len() < MOST_PLAIN {
            self.plain.insert(message.to);
        }
        Ok(())
    }
}

/// What the system says where a path takes no large packets, or not with segments of this size.
fn refuses_large(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP))
}

impl Message {
    fn packets(&self) -> usize {
        self.bytes.len().div_ceil(self.segment)
    }

    fn takes(&self, to: SocketAddr, bytes: usize) -> bool {
        let length = self.bytes.len();
        self.to == to
            && bytes <= self.segment
            && length.is_multiple_of(self.segment)
            && length < self.segment * MOST_SEGMENTS
            && length + bytes <= MOST_MESSAGE_BYTES
    }

    fn singles(&self) -> impl Iterator<Item = Self> + use<> {
        let Self { from, to, bytes, segment } = self.clone();
        bytes.clone().step_by(segment).map(move |start| {
            let bytes = start..(start + segment).min(bytes.end);
            Self { from, to, segment: bytes.len(), bytes }
        })
    }
}

/// Sends as many as the system takes, in order; how many.
fn send_messages(udp: &Udp, arena: &[u8], messages: &[Message]) -> usize {
    if let [one] = messages {
        return usize::from(udp.reaches(one.to) && send_message(udp, arena, one).is_ok());
    }
    let messages = &messages[..messages.len().min(MOST_MESSAGES)];
    let mut names = [(empty_name(), 0); MOST_MESSAGES];
    let mut pieces = [EMPTY_PIECE; MOST_MESSAGES];
    let mut ancillaries = [Ancillary([0; ANCILLARY_BYTES]); MOST_MESSAGES];
    let mut headers = [EMPTY_HEADER; MOST_MESSAGES];
    for (at, message) in messages.iter().enumerate() {
        if !udp.reaches(message.to) {
            // It and those behind it wait for the next call, which has it first.
            return send_headers(udp, &mut headers[..at]);
        }
        names[at] = to_system(message.to, udp.is_v6);
        let bytes = &arena[message.bytes.clone()];
        pieces[at] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let header = &mut headers[at].msg_hdr;
        header.msg_name = (&raw mut names[at].0).cast();
        header.msg_namelen = names[at].1;
        header.msg_iov = &raw mut pieces[at];
        header.msg_iovlen = 1;
        annotate(header, &mut ancillaries[at], message, udp.is_v6);
    }
    send_headers(udp, &mut headers[..messages.len()])
}

fn send_headers(udp: &Udp, headers: &mut [libc::mmsghdr]) -> usize {
    let count = libc::c_uint::try_from(headers.len()).unwrap_or(0);
    // SAFETY: every header points at names, pieces and ancillary data that live in the caller's frame.
    let sent = unsafe { libc::sendmmsg(udp.socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
    usize::try_from(sent).unwrap_or(0)
}

fn send_message(udp: &Udp, arena: &[u8], message: &Message) -> io::Result<()> {
    let mut name = to_system(message.to, udp.is_v6);
    let bytes = &arena[message.bytes.clone()];
    let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut ancillary = Ancillary([0; ANCILLARY_BYTES]);
    let mut header = EMPTY_HEADER.msg_hdr;
    header.msg_name = (&raw mut name.0).cast();
    header.msg_namelen = name.1;
    header.msg_iov = &raw mut piece;
    header.msg_iovlen = 1;
    annotate(&mut header, &mut ancillary, message, udp.is_v6);
    // SAFETY: the header points at a name, a piece and ancillary data of this frame.
    check(unsafe { libc::sendmsg(udp.socket.as_raw_fd(), &raw const header, 0) }).map(drop)
}

const EMPTY_PIECE: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
// SAFETY: a header of null pointers and zero lengths is a valid one.
const EMPTY_HEADER: libc::mmsghdr = unsafe { mem::zeroed() };

/// Says of what size the packets of a message are, and from which address of ours they leave.
fn annotate(header: &mut libc::msghdr, room: &mut Ancillary, message: &Message, is_v6: bool) {
    let mut used = 0;
    if message.packets() > 1 {
        let size = u16::try_from(message.segment).unwrap_or(u16::MAX);
        used += put(room, used, libc::SOL_UDP, libc::UDP_SEGMENT, size);
    }
    used += match message.from {
        Some(ip) if is_v6 => {
            let ip = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            let ipi6_addr = libc::in6_addr { s6_addr: ip.octets() };
            let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 };
            put(room, used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
        }
        Some(IpAddr::V4(ip)) => {
            let ipi_spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
            let info =
                libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
            put(room, used, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
        }
        None | Some(IpAddr::V6(_)) => 0,
    };
    if used > 0 {
        header.msg_control = (&raw mut room.0).cast();
        header.msg_controllen = used as _;
    }
}

/// Writes one control message behind the first `used` bytes; how many it takes.
#[expect(clippy::cast_ptr_alignment, reason = "the room is aligned, and so is each message's space in it")]
fn put<T: Copy>(room: &mut Ancillary, used: usize, level: libc::c_int, kind: libc::c_int, value: T) -> usize {
    let bytes = length::<T>();
    // SAFETY: they only compute.
    let (space, whole) = unsafe { (libc::CMSG_SPACE(bytes), libc::CMSG_LEN(bytes)) };
    let space = usize::try_from(space).unwrap_or(ANCILLARY_BYTES);
    let head = room.0[used..used + space].as_mut_ptr().cast::<libc::cmsghdr>();
    // SAFETY: the slice above is as long as the message needs, and aligned, as every message's space is a multiple of
    // the alignment.
    unsafe {
        (*head).cmsg_level = level;
        (*head).cmsg_type = kind;
        (*head).cmsg_len = whole as _;
        libc::CMSG_DATA(head).cast::<T>().write_unaligned(value);
    }
    space
}

/// Where received packets lie.
#[derive(Debug)]
pub struct Inbox {
    arena: Box<[u8]>,
    messages: Vec<Received>,
}

/// Received packets of one sender and one size, the last may be shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// From whom.
    pub from: SocketAddr,
    /// To which address of ours, on a socket that was bound to know.
    pub to: Option<IpAddr>,
    /// Where in the inbox's bytes they are.
    pub bytes: Range<usize>,
    /// The size of each.
    pub segment: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        let arena = vec![0; INBOX_MESSAGES * INBOX_MESSAGE_BYTES].into();
        Self { arena, messages: Vec::with_capacity(INBOX_MESSAGES) }
    }
}

impl Inbox {
    /// Waits for packets and takes all that are there, as far as they fit. None come from a socket that was shut.
    ///
    /// # Errors
    /// If the socket has something to say.
    pub fn receive(&mut self, udp: &Udp) -> io::Result<()> {
        self.receive_by(udp, libc::MSG_WAITFORONE)
    }

    /// Takes all packets that are there, as far as they fit, and waits for none.
    ///
    /// # Errors
    /// If the socket has something to say, or nothing is there.
    pub fn receive_now(&mut self, udp: &Udp) -> io::Result<()> {
        self.receive_by(udp, libc::MSG_DONTWAIT)
    }

    fn receive_by(&mut self, udp: &Udp, flags: libc::c_int) -> io::Result<()> {
        self.messages.clear();
        let mut names = [empty_name(); INBOX_MESSAGES];
        let mut pieces = [EMPTY_PIECE; INBOX_MESSAGES];
        let mut ancillaries = [Ancillary([0; ANCILLARY_BYTES]); INBOX_MESSAGES];
        let mut headers = [EMPTY_HEADER; INBOX_MESSAGES];
        for (at, chunk) in self.arena.chunks_exact_mut(INBOX_MESSAGE_BYTES).enumerate() {
            pieces[at] = libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() };
            let header = &mut headers[at].msg_hdr;
            header.msg_name = (&raw mut names[at]).cast();
            header.msg_namelen = length::<libc::sockaddr_in6>();
            header.msg_iov = &raw mut pieces[at];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut ancillaries[at].0).cast();
            header.msg_controllen = size_of::<Ancillary>() as _;
        }
        let count = libc::c_uint::try_from(INBOX_MESSAGES).unwrap_or(0);
        // SAFETY: every header points at a name, a piece of the arena and ancillary room of its own in this frame.
        let received = unsafe {
            libc::recvmmsg(udp.socket.as_raw_fd(), headers.as_mut_ptr(), count, flags, std::ptr::null_mut())
        };
        check_int(received)?;
        let received = usize::try_from(received).unwrap_or(0);
        for at in 0..received {
            let length = usize::try_from(headers[at].msg_len).unwrap_or(0);
            let start = at * INBOX_MESSAGE_BYTES;
            let Some(from) = from_system(&names[at]).filter(|_| length > 0) else { continue };
            let (segment, to) = notes(&headers[at].msg_hdr);
            let segment = segment.filter(|size| *size > 0).unwrap_or(length);
            self.messages.push(Received { from, to, bytes: start..start + length, segment });
        }
        Ok(())
    }

    /// What was received, and the bytes that it lies in.
    pub fn take(&mut self) -> (&[Received], &mut [u8]) {
        (&self.messages, &mut self.arena)
    }
}

/// The size of the packets in a received message, if there are several, and to which address of ours it came, if the
/// socket tells.
fn notes(header: &libc::msghdr) -> (Option<usize>, Option<IpAddr>) {
    let (mut segment, mut to) = (None, None);
    // SAFETY: the header is one that the kernel has just filled in, so its control messages are well-formed and within
    // the buffer that the header still points at; what each holds follows from its level and type.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(header);
        while let Some(message) = next.as_ref() {
            let data = libc::CMSG_DATA(message);
            match (message.cmsg_level, message.cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    segment = usize::try_from(data.cast::<libc::c_int>().read_unaligned()).ok();
                }
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    to = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical());
                }
                _ => {}
            }
            next = libc::CMSG_NXTHDR(header, message);
        }
    }
    (segment, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback() -> (Udp, Udp) {
        let bind = || Udp::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        (bind(), bind())
    }

    fn receive(udp: &Udp, packets: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let (mut inbox, mut all) = (Inbox::default(), Vec::new());
        while all.len() < packets {
            inbox.receive(udp).unwrap();
            let (messages, arena) = inbox.take();
            for Received { from, bytes, segment, .. } in messages {
                all.extend(arena[bytes.clone()].chunks(*segment).map(|packet| (*from, packet.to_vec())));
            }
        }
        all
    }

    #[test]
    fn packets_of_all_sizes_arrive_as_they_were() {
        let (a, b) = loopback();
        let mut outbox = Outbox::default();
        let sizes: Vec<usize> = [[100; 70].as_slice(), &[60, 60, 200, 1], &[1400; 64]].concat();
        for (at, size) in sizes.iter().enumerate() {
            assert!(outbox.fits(1, *size));
            outbox.add(b.local(), *size).fill(u8::try_from(at).unwrap());
        }
        let messages: Vec<_> = outbox.messages.iter().map(|m| (m.segment, m.packets())).collect();
        assert_eq!(messages, [(100, 64), (100, 7), (60, 1), (200, 2), (1400, 46), (1400, 18)]);
        outbox.flush(&a, |refused| panic!("{refused:?}"));
        assert!(outbox.is_empty());
        let all = receive(&b, sizes.len());
        for (at, (size, (from, packet))) in sizes.iter().zip(&all).enumerate() {
            assert_eq!((*from, packet), (a.local(), &vec![u8::try_from(at).unwrap(); *size]));
        }
    }

    #[test]
    fn who_takes_no_large_packets_gets_single_ones() {
        let (a, b) = loopback();
        let mut outbox = Outbox::default();
        outbox.plain.insert(b.local());
        for size in [[1000; 70].as_slice(), &[7]].concat() {
            outbox.add(b.local(), size);
        }
        outbox.flush(&a, |refused| panic!("{refused:?}"));
        assert_eq!(receive(&b, 71).len(), 71);
    }

    #[test]
    fn what_cannot_be_sent_is_told_and_the_rest_is_sent() {
        let (a, b) = loopback();
        let mut outbox = Outbox::default();
        let nowhere: SocketAddr = "[2001:db8::1]:9".parse().unwrap();
        outbox.add(b.local(), 10);
        outbox.add(nowhere, 10);
        outbox.add(nowhere, 10);
        outbox.add(b.local(), 11);
        let mut told = Vec::new();
        outbox.flush(&a, |refused| told.push((refused.to, refused.packets)));
        assert_eq!(told, [(nowhere, 2)]);
        assert_eq!(receive(&b, 2).len(), 2);
    }

    #[test]
    fn a_wildcard_hears_both_families() {
        let Ok(both) = Udp::bind("[::]:0".parse().unwrap()) else { return };
        let four = Udp::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        four.send((Ipv4Addr::LOCALHOST, both.local().port()).into(), b"four").unwrap();
        assert_eq!(receive(&both, 1), [(four.local(), b"four".to_vec())]);
        both.send(four.local(), b"back").unwrap();
        assert_eq!(receive(&four, 1)[0].1, b"back");
        assert!(four.send("[::1]:9".parse().unwrap(), b"six").is_err());
    }

    #[test]
    fn whoever_knows_where_a_packet_came_to_answers_from_there() {
        for wildcard in ["0.0.0.0:0", "[::]:0"] {
            let Ok(relay) = Udp::bind_knowing(wildcard.parse().unwrap()) else { continue };
            let mut asked = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 7])];
            asked.extend((relay.is_v6).then_some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
            for ip in asked {
                let a = Udp::bind(SocketAddr::new(ip, 0)).unwrap();
                let at = SocketAddr::new(ip, relay.local().port());
                a.send(at, b"question").unwrap();
                let mut inbox = Inbox::default();
                inbox.receive(&relay).unwrap();
                let Received { from, to, .. } = inbox.take().0[0].clone();
                assert_eq!((from, to), (a.local(), Some(ip)));
                let mut outbox = Outbox::default();
                for bytes in [100, 100, 60, 1] {
                    outbox.add_from(to, from, bytes);
                }
                outbox.flush(&relay, |refused| panic!("{refused:?}"));
                assert!(receive(&a, 4).into_iter().all(|(by, _)| by == at), "{at}");
            }
        }
    }

    #[test]
    fn some_destinations_have_a_socket_of_their_own() {
        let ((a, b), (other, c)) = (loopback(), loopback());
        let other = Arc::new(other);
        a.divert([(c.local(), other.clone())].into());
        let mut outbox = Outbox::default();
        for to in [&b, &c, &b, &c, &c] {
            outbox.add(to.local(), 9);
            outbox.add(to.local(), 9);
        }
        outbox.flush(&a, |refused| panic!("{refused:?}"));
        a.send(c.local(), b"alone").unwrap();
        let from =
            |udp, count| receive(udp, count).into_iter().map(|(from, _)| from).collect::<BTreeSet<_>>();
        assert_eq!((from(&b, 4), from(&c, 7)), ([a.local()].into(), [other.local()].into()));
        a.divert(BTreeMap::new());
        a.send(c.local(), b"again").unwrap();
        assert_eq!(receive(&c, 1)[0].0, a.local());
        let mut inbox = Inbox::default();
        assert!(inbox.receive_now(&c).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
    }

    #[test]
    fn who_waits_for_packets_is_woken_when_the_socket_is_shut() {
        let (a, _) = loopback();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut inbox = Inbox::default();
                let _ = inbox.receive(&a);
                inbox.take().0.len()
            });
            while !waiting.is_finished() {
                a.shut();
                std::thread::yield_now();
            }
            assert_eq!(waiting.join().unwrap(), 0);
        });
    }
}
