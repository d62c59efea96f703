//! Leases, lists and keys as a server would make them.

use std::net::Ipv4Addr;

use ionet_api::WalletKey;
use ionet_api::worker::{
    Desired, DesiredLease, Generation, Member, MemberEndpoint, MemberList, ObservedLease, Welcome,
};
use ionet_domain::device::Resources;
use ionet_domain::market::{EngineKind, Program};
use ionet_domain::order::overlay_ip;
use ionet_domain::{LeaseId, OrderId};
use ionet_worker::assignment::Assignment;

pub(crate) const NETWORK: &str = "test-net";

pub(crate) fn server_key() -> WalletKey {
    WalletKey::from_seed(&[1; 32])
}

pub(crate) fn lease_key() -> WalletKey {
    WalletKey::from_seed(&[2; 32])
}

pub(crate) fn order(n: u128) -> OrderId {
    OrderId::from_parts(1_700_000_000_000, n)
}

pub(crate) fn lease(order_n: u128, n: u32) -> LeaseId {
    LeaseId { order: order(order_n), n }
}

pub(crate) fn welcome() -> Welcome {
    Welcome { network: NETWORK.into(), server: server_key().address(), telemetry_ms: 5_000 }
}

pub(crate) fn member(lease: LeaseId, endpoint: Option<MemberEndpoint>) -> Member {
    let ip: Ipv4Addr = overlay_ip(lease.n);
    Member { lease, slot: lease.n, ip, endpoint }
}

/// Gives the lease a signed list of these members.
pub(crate) fn with_members(mut wanted: DesiredLease, generation: u64, members: Vec<Member>) -> DesiredLease {
    wanted.members = MemberList { cluster: wanted.lease.order, generation, members };
    wanted.members_signature = server_key().sign(NETWORK, &wanted.members);
    wanted
}

/// A command lease that is alone in its cluster.
pub(crate) fn wanted(lease: LeaseId) -> DesiredLease {
    let bare = DesiredLease {
        lease,
        engine: EngineKind::Command,
        program: Program { argv: vec!["/bin/true".into()], ..Program::default() },
        resources: Resources {
            cpu_millis: 500,
            memory_bytes: 128 << 20,
            disk_bytes: 1 << 30,
            ..Resources::default()
        },
        token: ionet_api::Secret::new("0123456789abcdef0123456789abcdef"),
        engine_epoch: 0,
        running: false,
        paid_ms: 60_000,
        grace_ms: 10_000,
        members: MemberList { cluster: lease.order, generation: 0, members: Vec::new() },
        members_signature: String::new(),
        egress: ionet_domain::market::Egress::On,
        void: Vec::new(),
        hiding: ionet_domain::market::Hiding::default(),
    };
    with_members(bare, 1, vec![member(lease, None)])
}

pub(crate) fn assignment(wanted: DesiredLease) -> Assignment {
    Assignment {
        network: NETWORK.into(),
        server: server_key().address(),
        near: true,
        gpus: Vec::new(),
        lease: wanted,
    }
}

pub(crate) fn desired(term: u64, n: u64, leases: Vec<DesiredLease>, ended: Vec<LeaseId>) -> Desired {
    Desired { generation: Generation { term, n }, leases, ended }
}

pub(crate) fn observed(lease: LeaseId, phase: ionet_api::worker::BoxPhase) -> ObservedLease {
    ObservedLease {
        lease,
        phase,
        parts_ms: Vec::new(),
        receipt: None,
        endpoint: None,
        engine_restarts: 0,
        egress: None,
    }
}
