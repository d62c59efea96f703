//! The data plane: packets between the TUN device and QUIC datagrams.
//!
//! A full queue drops the packet, as a router would; nothing waits for a slow peer. Of a packet too large for the way
//! to its peer the sender is told, so that it sends smaller ones. The hot path allocates a slab per batch, not per
//! packet.

use std::{
    net::Ipv4Addr,
    os::fd::OwnedFd,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use iroh::endpoint::{Connection, VarInt};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::icmp::fragmentation_needed;

const BATCH: usize = 64;
const SLAB_BYTES: usize = 64 << 10;
/// What the queue of a connection needs for a datagram beyond its bytes.
const QUEUE_OVERHEAD_BYTES: usize = 64;

/// Source and destination of a whole IPv4 packet; `None` for anything else.
fn ends(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let header = packet.first_chunk::<20>()?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header[0] & 15 < 5 || length != packet.len() {
        return None;
    }
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    Some((source, destination))
}

/// The device.
#[derive(Debug)]
pub(super) struct Tun {
    device: AsyncFd<OwnedFd>,
    packet_bytes: usize,
    unrouted: AtomicU64,
}

impl Tun {
    pub(super) fn new(device: OwnedFd, mtu: u16) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&device, true)?;
        let packet_bytes = usize::from(mtu).max(1280);
        // SAFETY: the descriptor is owned by the `AsyncFd` and stays open until that is dropped.
        let device = unsafe { AsyncFd::register(device)? };
        Ok(Self { device, packet_bytes, unrouted: AtomicU64::new(0) })
    }

    pub(super) fn unrouted(&self) -> u64 {
        self.unrouted.load(Ordering::Relaxed)
    }

    /// Sends every packet of the device down the lane of its destination, until the device is gone.
    pub(super) async fn read_all(&self, me: Ipv4Addr, lane: impl Fn(Ipv4Addr) -> Option<Arc<Lane>>) {
        let mut slab = BytesMut::new();
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            match self.read_batch(&mut slab, &mut batch, me).await {
                Ok(()) => {}
                Err(Errno::BADFD | Errno::BADF | Errno::NODEV) => return,
                Err(error) => {
                    // A device that is down gives errors until it is up.
                    tracing::debug!(%error, "cannot read the TUN device");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            let busy = batch.len() == BATCH;
            batch.sort_by_key(|(to, _)| *to);
            for group in batch.chunk_by(|a, b| a.0 == b.0) {
                match lane(group[0].0) {
                    Some(lane) => {
                        if let Some(answer) = lane.send(group) {
                            self.write(&answer);
                        }
                    }
                    None => self.count_unrouted(group.len()),
                }
            }
            batch.clear();
            if busy {
                // Lets the connections send on a runtime of one thread.
                tokio::task::yield_now().await;
            }
        }
    }

    async fn read_batch(
        &self,
        slab: &mut BytesMut,
        batch: &mut Vec<(Ipv4Addr, Bytes)>,
        me: Ipv4Addr,
    ) -> Result<(), Errno> {
        let mut ready = self.device.readable().await.map_err(|_| Errno::BADF)?;
        for _ in 0..BATCH {
            if slab.capacity() < self.packet_bytes {
                *slab = BytesMut::with_capacity(SLAB_BYTES.max(self.packet_bytes));
            }
            slab.resize(self.packet_bytes, 0);
            let count = match rustix::io::read(self.device.get_ref(), &mut slab[..]) {
                Ok(0) => return Err(Errno::BADFD),
                Ok(count) => count,
                Err(Errno::AGAIN) => {
                    slab.clear();
                    ready.clear_ready();
                    return Ok(());
                }
                Err(error) => {
                    slab.clear();
                    return Err(error);
                }
            };
            slab.truncate(count);
            let packet = slab.split().freeze();
            match ends(&packet) {
                Some((source, destination)) if source == me => batch.push((destination, packet)),
                _ => self.count_unrouted(1),
            }
        }
        Ok(())
    }

    fn count_unrouted(&self, packets: usize) {
        self.unrouted.fetch_add(packets as u64, Ordering::Relaxed);
    }

    /// Hands a packet to the kernel; `false` if it would not take it.
    fn write(&self, packet: &[u8]) -> bool {
        rustix::io::write(self.device.get_ref(), packet).is_ok()
    }
}

/// The way to one peer: its connection, if there is one, and what was counted on it.
#[derive(Debug)]
pub(super) struct Lane {
    me: Ipv4Addr,
    peer: Ipv4Addr,
    connection: RwLock<Option<Connection>>,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Lane {
    pub(super) fn new(me: Ipv4Addr, peer: Ipv4Addr) -> Self {
        Self {
            me,
            peer,
            connection: RwLock::new(None),
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    pub(super) fn connection(&self) -> Option<Connection> {
        self.connection.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, connection: Option<Connection>) {
        *self.connection.write().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    pub(super) fn close(&self, code: u32) {
        let connection = self.connection.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(connection) = connection {
            connection.close(VarInt::from_u32(code), b"done");
        }
    }

    /// Bytes sent, bytes received, packets dropped.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.sent_bytes), load(&self.received_bytes), load(&self.dropped))
    }

    fn count_dropped(&self, packets: usize) {
        self.dropped.fetch_add(packets as u64, Ordering::Relaxed);
    }

    /// Sends what fits; the answer to the first packet that is too large for the way.
    fn send(&self, group: &[(Ipv4Addr, Bytes)]) -> Option<Vec<u8>> {
        let Some(connection) = self.connection() else {
            self.count_dropped(group.len());
            return None;
        };
        let largest = connection.max_datagram_size().unwrap_or(0);
        let mut room = connection.datagram_send_buffer_space();
        let mut fitting = Vec::with_capacity(group.len());
        let mut bytes = 0;
        for (_, packet) in group {
            let need = packet.len() + QUEUE_OVERHEAD_BYTES;
            if packet.len() <= largest && need <= room {
                room -= need;
                bytes += packet.len() as u64;
                fitting.push(packet.clone());
            }
        }
        match connection.send_many_datagrams(&fitting) {
            Ok(_) => {
                self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
                self.count_dropped(group.len() - fitting.len());
            }
            Err(_) => self.count_dropped(group.len()),
        }
        let (_, too_large) = group.iter().find(|(_, packet)| packet.len() > largest)?;
        fragmentation_needed(too_large, u16::try_from(largest).unwrap_or(u16::MAX))
    }

    /// Lets in what the peer may send, until the connection ends.
    pub(super) async fn receive_all(&self, connection: &Connection, tun: &Tun) {
        let mut batch = vec![Bytes::new(); BATCH];
        while let Ok(count) = connection.read_many_datagrams(&mut batch).await {
            for packet in batch[..count].iter_mut().map(std::mem::take) {
                if ends(&packet) == Some((self.peer, self.me)) && tun.write(&packet) {
                    self.received_bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
                } else {
                    self.count_dropped(1);
                }
            }
        }
    }
}
