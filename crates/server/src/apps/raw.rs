//! Public TCP and UDP ports: what the state says is open is open, and nothing else.
//!
//! Always holds: a port that cannot be opened is tried again and says why; one that is not exposed any more is closed with
//! its connections; each direction of a connection ends on its own. Not here: datagrams (`udp`).

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use ionet_domain::account::ActivityKind;
use ionet_domain::order::expose::{Exposure, Kind};
use ionet_domain::{Address, Order, OrderId};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::listen::{keep_alive, pause_after};
use super::live::Pass;
use super::stall::Stall;
use super::{Coming, Gateway, open};

/// Which service a public port leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) order: OrderId,
    pub(super) owner: Address,
    pub(super) exposure: Exposure,
}

impl Target {
    pub(super) fn pass(&self) -> Pass {
        let Exposure { kind, port, slot, .. } = self.exposure;
        Pass { order: self.order, service: (kind, port), slot, visitor: None }
    }
}

/// The public ports that are open.
#[derive(Debug, Default)]
pub(super) struct Ports(BTreeMap<(Kind, u16), (Target, Open)>);

#[derive(Debug)]
struct Open(JoinHandle<()>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Gateway {
    fn wanted(&self) -> BTreeMap<(Kind, u16), Target> {
        let targets = |order: &Order| {
            let (id, owner) = (order.id, order.account);
            let public = |it: &Exposure| {
                Some(((it.kind, it.public_port?), Target { order: id, owner, exposure: *it }))
            };
            order.exposures().iter().filter_map(public).collect::<Vec<_>>()
        };
        self.handle.read(|view| view.state.orders.values().flat_map(targets).collect())
    }

    /// Opens and closes ports until they are as the state says.
    pub(super) async fn reconcile(&self, ports: &mut Ports) {
        let wanted = self.wanted();
        ports.0.retain(|place, (target, open)| wanted.get(place) == Some(target) && !open.0.is_finished());
        let mut troubles = BTreeMap::new();
        for (place, target) in wanted {
            if ports.0.contains_key(&place) {
                continue;
            }
            match self.open_port(place, target).await {
                Ok(open) => _ = ports.0.insert(place, (target, open)),
                Err(error) => {
                    let (kind, port) = place;
                    let trouble = format!("the server cannot open {kind} port {port}: {error}");
                    _ = troubles.insert(place, trouble);
                }
            }
        }
        *open(&self.apps.troubles) = troubles;
    }

    async fn open_port(&self, (kind, port): (Kind, u16), target: Target) -> io::Result<Open> {
        let address = SocketAddr::new(self.apps.config.listen.ip(), port);
        let gateway = self.clone();
        Ok(Open(match kind {
            Kind::Udp => {
                let socket = tokio::net::UdpSocket::bind(address).await?;
                tokio::spawn(gateway.datagrams(socket, target))
            }
            Kind::Tcp | Kind::Http => {
                let listener = TcpListener::bind(address).await?;
                tokio::spawn(gateway.connections(listener, target))
            }
        }))
    }

    async fn connections(self, listener: TcpListener, target: Target) {
        let mut going = JoinSet::new();
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    going.spawn(self.clone().connection(stream, from, target));
                }
                Err(error) => pause_after(&error).await,
            }
            while going.try_join_next().is_some() {}
        }
    }

    async fn connection(self, stream: TcpStream, from: SocketAddr, target: Target) {
        keep_alive(&stream);
        let Ok(mut going) = self.apps.live.begin(target.pass(), self.now_ms()) else {
            return refuse(&stream);
        };
        let service = target.exposure.service().to_string();
        self.note(
            ActivityKind::ServiceReached,
            target.owner,
            target.order,
            &service,
            Coming { from, account: None },
        );
        // Until both sides have said all, an end is a break, and shows as one.
        refuse(&stream);
        let copying = async {
            match self.open(target.order, &target.exposure).await {
                Ok(mut service) => {
                    let mut visitor = Stall::new(stream);
                    if copy_bidirectional(&mut visitor, &mut service).await.is_ok() {
                        let _ = rustix::net::sockopt::set_socket_linger(visitor.into_inner(), None);
                    } else {
                        service.into_inner().reset();
                    }
                }
                Err(trouble) => {
                    tracing::debug!(%from, order = %target.order, %trouble, "a connection found no service");
                }
            }
        };
        tokio::select! {
            () = copying => {}
            () = going.cut() => {}
        }
    }
}

/// A connection that leads nowhere is reset, never ended as if all had been said.
fn refuse(stream: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}
