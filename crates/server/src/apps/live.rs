//! What goes on through exposed services: counted, bounded for each cluster, and cut when its way in is closed.
//!
//! Always holds: whatever goes on is in the list until it ends; who is taken off the list is told at once. Not here: what
//! goes on.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use ionet_domain::OrderId;
use ionet_domain::order::expose::Kind;
use tokio::sync::oneshot;

use super::access::Visitor;
use super::answer::Trouble;
use super::{AppsLimits, open};

/// On what ground something goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pass {
    pub(super) order: OrderId,
    pub(super) service: (Kind, u16),
    pub(super) slot: u32,
    pub(super) visitor: Option<Visitor>,
}

/// All that goes on.
#[derive(Debug)]
pub(super) struct Live {
    limits: AppsLimits,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    next: u64,
    going: BTreeMap<u64, (Pass, oneshot::Sender<()>)>,
    clusters: BTreeMap<OrderId, Cluster>,
}

#[derive(Debug, Default)]
struct Cluster {
    going: usize,
    /// The second that is counted.
    second: u64,
    begun: u32,
}

/// Something that goes on; it is off the list when dropped.
#[derive(Debug)]
pub(super) struct Going {
    live: Arc<Live>,
    n: u64,
    cut: oneshot::Receiver<()>,
}

impl Live {
    pub(super) fn new(limits: AppsLimits) -> Self {
        Self { limits, list: Mutex::default() }
    }

    /// Takes something up.
    pub(super) fn begin(self: &Arc<Self>, pass: Pass, now_ms: u64) -> Result<Going, Trouble> {
        let (most, each_second, second) =
            (self.limits.each_cluster, self.limits.new_each_second, now_ms / 1000);
        let mut list = open(&self.list);
        list.clusters.retain(|_, cluster| cluster.going > 0 || cluster.second == second);
        let cluster = list.clusters.entry(pass.order).or_default();
        if cluster.second != second {
            (cluster.second, cluster.begun) = (second, 0);
        }
        if cluster.going >= most {
            return Err(Trouble::TooMany { most });
        }
        if cluster.begun >= each_second {
            return Err(Trouble::TooOften { each_second });
        }
        cluster.begun += 1;
        cluster.going += 1;
        let (cutter, cut) = oneshot::channel();
        let n = list.next;
        list.next += 1;
        list.going.insert(n, (pass, cutter));
        Ok(Going { live: self.clone(), n, cut })
    }

    /// Cuts what `keep` does not keep; how many.
    pub(super) fn cut(&self, keep: impl Fn(&Pass) -> bool) -> usize {
        let mut list = open(&self.list);
        let before = list.going.len();
        let mut gone = Vec::new();
        list.going.retain(|_, (pass, _)| {
            let stays = keep(pass);
            if !stays {
                gone.push(pass.order);
            }
            stays
        });
        for order in gone {
            list.less(order);
        }
        before - list.going.len()
    }

    /// What goes on now.
    pub(super) fn passes(&self) -> Vec<Pass> {
        open(&self.list).going.values().map(|(pass, _)| *pass).collect()
    }

    pub(super) fn count(&self, order: OrderId, service: (Kind, u16)) -> u64 {
        let list = open(&self.list);
        list.going.values().filter(|(pass, _)| pass.order == order && pass.service == service).count() as u64
    }
}

impl List {
    fn less(&mut self, order: OrderId) {
        if let Some(cluster) = self.clusters.get_mut(&order) {
            cluster.going = cluster.going.saturating_sub(1);
        }
    }
}

impl Going {
    /// Done when it is to end.
    pub(super) async fn cut(&mut self) {
        let _ = (&mut self.cut).await;
    }

    /// Whether it is to end; the task is woken when that changes.
    pub(super) fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.cut).poll(cx).map(|_| ())
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let mut list = open(&self.live.list);
        if let Some((pass, _)) = list.going.remove(&self.n) {
            list.less(pass.order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(order: u128) -> Pass {
        Pass { order: OrderId::from_bits(order), service: (Kind::Http, 80), slot: 0, visitor: None }
    }

    #[tokio::test]
    async fn each_cluster_has_its_own_bounds_and_what_is_cut_is_told() {
        let limits = AppsLimits { each_cluster: 2, new_each_second: 3, ..AppsLimits::default() };
        let live = Arc::new(Live::new(limits));
        let (first, mut second) = (live.begin(pass(1), 5).unwrap(), live.begin(pass(1), 5).unwrap());
        let code = |answer: Result<Going, Trouble>| {
            answer.map_or_else(|trouble| trouble.code().to_owned(), |_| "ok".into())
        };
        assert_eq!(code(live.begin(pass(1), 5)), "too_many_connections");
        assert_eq!(code(live.begin(pass(2), 5)), "ok", "another cluster is not in the way");
        drop(first);
        let third = live.begin(pass(1), 5).unwrap();
        drop(third);
        assert_eq!(code(live.begin(pass(1), 5)), "too_often");
        assert_eq!(code(live.begin(pass(1), 1005)), "ok", "in the next second");
        assert_eq!(live.count(OrderId::from_bits(1), (Kind::Http, 80)), 1);
        assert_eq!(live.cut(|pass| pass.order != OrderId::from_bits(1)), 1);
        second.cut().await;
        assert_eq!(live.passes(), []);
        drop(second);
        for _ in 0..2 {
            std::mem::forget(live.begin(pass(1), 2005).unwrap());
        }
        assert_eq!(code(live.begin(pass(1), 2005)), "too_many_connections", "counted once each");
    }
}
