//! What carries a tunnel: a QUIC stream, or a TCP connection through a relay, sealed here; and the frames on it.
//!
//! Both are reliable, ordered, and sealed between the two endpoints' keys: a QUIC stream by QUIC, a TCP connection by
//! records under keys that were agreed on the QUIC stream before it. A frame is a length of four bytes, big end first,
//! then a kind of one byte and its body; on TCP these are sealed with AES-256-GCM, the nonce being the record's number.
//!
//! Always holds: a frame that does not authenticate, is too long or of no known kind breaks the carrier; dropping a
//! pending [`Reader::next`] loses nothing. Not here: what frames mean (`session`), how a connection is made (`promote`).

use std::{
    io::{Error, ErrorKind, Result},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use iroh::endpoint::{RecvStream, SendStream, VarInt};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::Instant,
};

use super::Pooled;

/// The most that one frame of data holds.
pub(super) const DATA_BYTES: usize = 64 << 10;
const LENGTH_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
const FRAME_LIMIT_BYTES: usize = 1 + DATA_BYTES + TAG_BYTES;
const READ_BYTES: usize = 4 * (LENGTH_BYTES + FRAME_LIMIT_BYTES);
/// What a stream that is idle keeps for the next read.
const IDLE_READ_BYTES: usize = 4 << 10;
/// Stream code for "moved elsewhere or broken", as against a clean end.
const LEFT: VarInt = VarInt::from_u32(1);

/// What a frame is; the number is its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes of the tunnel.
    Data = 0,
    /// How far the other side has read, and how much further it has room.
    Ack = 1,
    /// This direction has ended; how long it was.
    End = 2,
    /// The service, or whoever uses it, broke: why, as text.
    Reset = 3,
    /// The first on a carrier that takes over from another: an [`Kind::Ack`] of all before it.
    Hello = 4,
    /// Meet me at a relay.
    Move = 5,
    /// Still here.
    Ping = 6,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Data, Self::Ack, Self::End, Self::Reset, Self::Hello, Self::Move, Self::Ping];
}

/// The secret that seals a TCP connection: 32 random bytes, of use once.
pub(super) type Secret = [u8; 32];

/// One reliable, sealed way between both ends.
pub(super) struct Carrier {
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    /// Whether it is a TCP connection: then nobody else notices that its other end is silent.
    pub(super) is_tcp: bool,
    /// The connection that a QUIC stream is on, at the client.
    pub(super) pooled: Option<Arc<Pooled>>,
}

impl Carrier {
    pub(super) fn quic(send: SendStream, receive: RecvStream, pooled: Option<Arc<Pooled>>) -> Self {
        Self {
            reader: Reader::new(ReadHalf::Quic(receive), None),
            writer: Writer::new(WriteHalf::Quic(send), None),
            is_tcp: false,
            pooled,
        }
    }

    /// `dialled` says which side is ours: each seals with a key of its own.
    pub(super) fn tcp(stream: TcpStream, secret: &Secret, dialled: bool) -> Result<Self> {
        stream.set_nodelay(true)?;
        let (receive, send) = stream.into_split();
        let [ours, theirs] = if dialled { ["client", "server"] } else { ["server", "client"] };
        Ok(Self {
            reader: Reader::new(ReadHalf::Tcp(receive), Some(Seal::new(secret, theirs)?)),
            writer: Writer::new(WriteHalf::Tcp(send), Some(Seal::new(secret, ours)?)),
            is_tcp: true,
            pooled: None,
        })
    }
}

/// A key of one direction and how often it was used.
struct Seal {
    key: LessSafeKey,
    count: u64,
}

impl Seal {
    /// HKDF-SHA256 (RFC 5869) of the secret, with the direction's name.
    fn new(secret: &Secret, direction: &str) -> Result<Self> {
        let failed = |_| Error::other("no key could be derived");
        let from = hkdf::Salt::new(hkdf::HKDF_SHA256, b"ionet tunnel 1").extract(secret);
        let info = [direction.as_bytes()];
        let key = from.expand(&info, &AES_256_GCM).map_err(failed)?;
        Ok(Self { key: LessSafeKey::new(UnboundKey::from(key)), count: 0 })
    }

    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.count.to_be_bytes());
        self.count += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

enum ReadHalf {
    Quic(RecvStream),
    Tcp(OwnedReadHalf),
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        match self.get_mut() {
            Self::Quic(stream) => AsyncRead::poll_read(Pin::new(stream), cx, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

/// One frame as it came.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) body: Bytes,
}

/// The receiving direction of a carrier.
pub(super) struct Reader {
    half: ReadHalf,
    seal: Option<Seal>,
    buffer: BytesMut,
    /// When anything last came.
    heard: Instant,
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let ReadHalf::Quic(stream) = &mut self.half {
            // Nothing of it is of use to us any more; ended already is as good.
            let _ = stream.stop(LEFT);
        }
    }
}

impl Reader {
    fn new(half: ReadHalf, seal: Option<Seal>) -> Self {
        Self { half, seal, buffer: BytesMut::new(), heard: Instant::now() }
    }

    /// How long nothing has come.
    pub(super) fn silence(&self) -> Duration {
        self.heard.elapsed()
    }

    /// The next frame; `None` at the end of the carrier.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            let room = if self.buffer.is_empty() { IDLE_READ_BYTES } else { READ_BYTES };
            self.buffer.reserve(room);
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
            self.heard = Instant::now();
        }
    }

    fn take(&mut self) -> Result<Option<Frame>> {
        let Some(head) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        let least = 1 + if self.seal.is_some() { TAG_BYTES } else { 0 };
        if !(least..=FRAME_LIMIT_BYTES).contains(&length) {
            return Err(malformed("a frame's length"));
        }
        if self.buffer.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        let mut frame = self.buffer.split_to(length);
        if let Some(seal) = &mut self.seal {
            let nonce = seal.next_nonce();
            let opened = seal.key.open_in_place(nonce, Aad::empty(), &mut frame);
            let length = opened.map_err(|_| malformed("a record's seal"))?.len();
            frame.truncate(length);
        }
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == frame[0]);
        let kind = kind.ok_or_else(|| malformed("a frame's kind"))?;
        frame.advance(1);
        Ok(Some(Frame { kind, body: frame.freeze() }))
    }
}

pub(super) fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("{what} is not as it must be"))
}

enum WriteHalf {
    Quic(SendStream),
    Tcp(OwnedWriteHalf),
}

impl AsyncWrite for WriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        match self.get_mut() {
            Self::Quic(stream) => AsyncWrite::poll_write(Pin::new(stream), cx, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match self.get_mut() {
            Self::Quic(stream) => AsyncWrite::poll_flush(Pin::new(stream), cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match self.get_mut() {
            Self::Quic(stream) => AsyncWrite::poll_shutdown(Pin::new(stream), cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The sending direction of a carrier.
pub(super) struct Writer {
    half: WriteHalf,
    seal: Option<Seal>,
    out: Vec<u8>,
    is_shut: bool,
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let (WriteHalf::Quic(stream), false) = (&mut self.half, self.is_shut) {
            // Without it the end of this half would look like a clean one.
            let _ = stream.reset(LEFT);
        }
    }
}

impl Writer {
    fn new(half: WriteHalf, seal: Option<Seal>) -> Self {
        Self { half, seal, out: Vec::new(), is_shut: false }
    }

    /// Adds a frame to what [`Writer::flush`] sends; the body is at most [`DATA_BYTES`] long.
    pub(super) fn push(&mut self, kind: Kind, body: &[u8]) -> Result<()> {
        let begin = self.out.len();
        self.out.extend([0; LENGTH_BYTES]);
        self.out.push(kind as u8);
        self.out.extend_from_slice(body);
        if let Some(seal) = &mut self.seal {
            let nonce = seal.next_nonce();
            let sealed = &mut self.out[begin + LENGTH_BYTES..];
            let tag = seal.key.seal_in_place_separate_tag(nonce, Aad::empty(), sealed);
            self.out.extend_from_slice(tag.map_err(|_| malformed("a frame to seal"))?.as_ref());
        }
        let length = self.out.len() - begin - LENGTH_BYTES;
        let length = u32::try_from(length).map_err(|_| malformed("a frame's length"))?;
        self.out[begin..begin + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// How much waits to be sent.
    pub(super) fn pushed(&self) -> usize {
        self.out.len()
    }

    /// Sends what was added. Dropping this leaves a carrier of no further use.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if !self.out.is_empty() {
            self.half.write_all(&self.out).await?;
            self.out.clear();
            if self.out.capacity() > READ_BYTES {
                self.out.shrink_to(READ_BYTES);
            }
        }
        Ok(())
    }

    /// Ends this direction; what was sent still arrives.
    pub(super) async fn shutdown(&mut self) -> Result<()> {
        self.flush().await?;
        self.half.shutdown().await?;
        self.is_shut = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn pair(secrets: [Secret; 2]) -> [Carrier; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let [ours, theirs] = secrets;
        [Carrier::tcp(dialled, &ours, true).unwrap(), Carrier::tcp(accepted, &theirs, false).unwrap()]
    }

    #[tokio::test]
    async fn frames_arrive_as_they_were_sent_in_both_directions() {
        let [mut a, mut b] = pair([[7; 32]; 2]).await;
        for length in [0, 1, 1000, DATA_BYTES] {
            let body: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            for (from, to) in [(&mut a.writer, &mut b.reader), (&mut b.writer, &mut a.reader)] {
                from.push(Kind::Data, &body).unwrap();
                from.push(Kind::Ping, b"").unwrap();
                let sending = async { from.flush().await.unwrap() };
                let taking = async {
                    let frame = to.next().await.unwrap().unwrap();
                    assert_eq!((frame.kind, &frame.body[..]), (Kind::Data, &body[..]));
                    assert_eq!(to.next().await.unwrap().unwrap().kind, Kind::Ping);
                };
                tokio::join!(sending, taking);
            }
        }
        a.writer.shutdown().await.unwrap();
        assert!(b.reader.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_was_sealed_with_another_secret_or_changed_on_the_way_breaks_it() {
        let [mut a, mut b] = pair([[7; 32], [8; 32]]).await;
        a.writer.push(Kind::Data, b"for somebody else").unwrap();
        a.writer.flush().await.unwrap();
        assert_eq!(b.reader.next().await.unwrap_err().kind(), ErrorKind::InvalidData);
        for at in 0..30 {
            let [mut a, mut b] = pair([[7; 32]; 2]).await;
            a.writer.push(Kind::Data, b"a few words").unwrap();
            let spoiled = at % a.writer.out.len();
            a.writer.out[spoiled] ^= 1;
            a.writer.shutdown().await.unwrap();
            assert!(b.reader.next().await.is_err(), "byte {spoiled}");
        }
    }

    #[tokio::test]
    async fn what_ends_inside_a_frame_is_no_clean_end() {
        let [mut a, mut b] = pair([[7; 32]; 2]).await;
        a.writer.push(Kind::Data, b"a few words").unwrap();
        let short = a.writer.out.len() - 1;
        a.writer.out.truncate(short);
        a.writer.shutdown().await.unwrap();
        assert_eq!(b.reader.next().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
