//! The thin edge to the TCP stack (smoltcp): one end of one connection, packets in and out, bytes in and out.
//!
//! Each connection has a stack of its own, found by its addresses, so that a packet costs the same however many
//! connections there are. Always holds: the buffers are the ones that were given at the start and never grow. Nothing
//! else here knows smoltcp.

use std::net::SocketAddr;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr, IpListenEndpoint};

/// A box that answers nothing at all for so long has lost the connection.
const SILENT_FOR: Duration = Duration::from_secs(120);
const KEEP_ALIVE: Duration = Duration::from_secs(40);

/// Where packets go.
pub(crate) trait Outlet {
    /// Takes one whole packet of `length` bytes that `write` fills in.
    fn packet<R>(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> R) -> R;
    /// The longest packet in bytes.
    fn mtu(&self) -> u16;
}

/// One end of one TCP connection.
pub(crate) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Stack {
    /// An end at `local` that waits for the connection's first packet. `seed` makes its sequence numbers.
    pub(crate) fn new(
        local: SocketAddr,
        buffer_bytes: usize,
        seed: u64,
        now_ms: u64,
        outlet: &mut impl Outlet,
    ) -> Option<Self> {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut wire = Wire { incoming: None, outlet };
        let mut interface = Interface::new(config, &mut wire, instant(now_ms));
        // It is the whole world for the box: every other address is its neighbour.
        interface.update_ip_addrs(|addresses| {
            let _ = addresses.push(IpCidr::new(local.ip().into(), 0));
        });
        let buffer = || SocketBuffer::new(vec![0; buffer_bytes]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(SILENT_FOR));
        socket.set_keep_alive(Some(KEEP_ALIVE));
        socket.listen(IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() }).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Self { interface, sockets, handle })
    }

    /// Takes a packet, if there is one, and sends what is due.
    pub(crate) fn poll(&mut self, now_ms: u64, incoming: Option<&[u8]>, outlet: &mut impl Outlet) {
        let mut wire = Wire { incoming, outlet };
        self.interface.poll(instant(now_ms), &mut wire, &mut self.sockets);
    }

    /// When it wants to be polled although nothing happened.
    pub(crate) fn next_ms(&mut self, now_ms: u64) -> Option<u64> {
        let at = self.interface.poll_at(instant(now_ms), &self.sockets)?;
        Some(u64::try_from(at.total_millis()).unwrap_or(0).max(now_ms + 1))
    }

    /// Whether there is room for bytes towards the box.
    pub(crate) fn has_room(&self) -> bool {
        self.socket().can_send()
    }

    /// Lets `fill` put bytes for the box into the buffer; it answers with how many.
    pub(crate) fn send<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        self.socket_mut().send(fill).ok()
    }

    /// Whether there are bytes from the box.
    pub(crate) fn has_bytes(&self) -> bool {
        self.socket().can_recv()
    }

    /// Lets `take` have bytes from the box; it answers with how many it took.
    pub(crate) fn receive<R>(&mut self, take: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        self.socket_mut().recv(take).ok()
    }

    /// No more bytes come for the box.
    pub(crate) fn finish(&mut self) {
        self.socket_mut().close();
    }

    /// Ends it with a reset.
    pub(crate) fn abort(&mut self) {
        self.socket_mut().abort();
    }

    /// Whether the box has sent its last byte and all of them were taken.
    pub(crate) fn box_finished(&self) -> bool {
        let past = [State::CloseWait, State::LastAck, State::Closing, State::TimeWait];
        !self.has_bytes() && past.contains(&self.socket().state())
    }

    /// Whether the box has not yet confirmed the connection.
    pub(crate) fn is_opening(&self) -> bool {
        [State::Listen, State::SynReceived].contains(&self.socket().state())
    }

    /// Whether no packet is to be expected any more.
    pub(crate) fn is_over(&self) -> bool {
        !self.socket().is_open()
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

fn instant(now_ms: u64) -> Instant {
    Instant::from_millis(i64::try_from(now_ms).unwrap_or(i64::MAX))
}

struct Wire<'a, O: Outlet> {
    incoming: Option<&'a [u8]>,
    outlet: &'a mut O,
}

impl<O: Outlet> Device for Wire<'_, O> {
    type RxToken<'t>
        = Rx<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Tx<'t, O>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_, O>)> {
        Some((Rx(self.incoming.take()?), Tx(self.outlet)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_, O>> {
        Some(Tx(self.outlet))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        // What comes from the box was computed by this machine's kernel and crossed no wire.
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.outlet.mtu().into();
        capabilities.checksum = checksum;
        capabilities
    }
}

struct Rx<'a>(&'a [u8]);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

struct Tx<'a, O>(&'a mut O);

impl<O: Outlet> TxToken for Tx<'_, O> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        self.0.packet(length, write)
    }
}
