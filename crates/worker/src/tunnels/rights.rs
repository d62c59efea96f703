//! For how long leave lasts: what it opened is cut when it is taken back or its time is over.
//!
//! Always holds: a stream whose leave is void gives an error at its next move in either direction, and wakes up for it. Not
//! here: whether leave is good at all (`TunnelAuth`), who takes it back (the server).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ionet_api::sign::Grant;
use ionet_domain::tunnel::Void;
use ionet_net::tunnel::Refused;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::{now_ms, refused};

/// Timers beyond this are set anew.
const LONGEST: Duration = Duration::from_hours(1);

/// Whether `grant` was taken back.
///
/// # Errors
/// With the code `grant_revoked`.
pub(super) fn check(void: &[Void], grant: &Grant) -> Result<(), Refused> {
    if void.iter().any(|void| void.covers(grant.account, grant.key, grant.issued_ms)) {
        let message = "this leave was taken back; ask the cluster's owner, or the server for a new one";
        return Err(refused("grant_revoked", message));
    }
    Ok(())
}

/// Comes back when what `grant` opened must end.
async fn over(grant: Grant, mut void: watch::Receiver<Vec<Void>>) {
    loop {
        let left = grant.cut_ms.map(|cut_ms| Duration::from_millis(cut_ms.saturating_sub(now_ms())));
        if left == Some(Duration::ZERO) || check(&void.borrow_and_update(), &grant).is_err() {
            return;
        }
        tokio::select! {
            changed = void.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(left.unwrap_or(LONGEST).min(LONGEST)) => {}
        }
    }
}

/// A service for as long as its leave lasts.
pub(super) struct WhileGranted<S> {
    service: S,
    over: Pin<Box<dyn Future<Output = ()> + Send>>,
    cut: bool,
}

impl<S> WhileGranted<S> {
    pub(super) fn new(service: S, grant: Grant, void: watch::Receiver<Vec<Void>>) -> Self {
        Self { service, over: Box::pin(over(grant, void)), cut: false }
    }

    fn still(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // A future that is done is not asked again.
        self.cut = self.cut || self.over.as_mut().poll(cx).is_ready();
        if self.cut {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "the leave is over"))
        } else {
            Ok(())
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WhileGranted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.still(cx)?;
        Pin::new(&mut self.service).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WhileGranted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.still(cx)?;
        Pin::new(&mut self.service).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.still(cx)?;
        Pin::new(&mut self.service).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.service).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use ionet_domain::{Address, EndpointId, OrderId};
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn grant(cut_ms: Option<u64>) -> Grant {
        Grant {
            cluster: OrderId::from_parts(1, 1),
            endpoint: EndpointId([1; 32]),
            account: Address([2; 32]),
            key: None,
            services: ionet_domain::tunnel::Services::All,
            issued_ms: 5,
            not_after_ms: u64::MAX,
            cut_ms,
        }
    }

    #[tokio::test]
    async fn a_stream_ends_when_its_leave_is_taken_back() {
        let (tell, void) = watch::channel(Vec::new());
        let (service, _held) = tokio::io::duplex(64);
        let mut stream = WhileGranted::new(service, grant(None), void);
        let reading = tokio::spawn(async move { stream.read_u8().await });
        let other = Void { account: Address([3; 32]), key: None, before_ms: 9 };
        tell.send_replace(vec![other]);
        tokio::task::yield_now().await;
        assert!(!reading.is_finished(), "somebody else's");
        tell.send_replace(vec![other, Void { account: Address([2; 32]), ..other }]);
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[tokio::test]
    async fn a_stream_ends_with_the_time_of_its_leave() {
        let (_tell, void) = watch::channel(Vec::new());
        let (service, _held) = tokio::io::duplex(64);
        let mut stream = WhileGranted::new(service, grant(Some(now_ms() + 30)), void);
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
