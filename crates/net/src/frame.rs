//! Frames on a byte stream: a length as four bytes, big end first, then that many bytes.

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::NetError;

const LENGTH_BYTES: usize = 4;
/// Capacity kept between frames; a larger frame's memory is given back after it.
const KEPT_BYTES: usize = 16 << 10;

/// Reads frames. Dropping a pending [`FrameReader::next`] loses nothing.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    limit_bytes: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(stream: R, limit_bytes: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), limit_bytes }
    }

    /// The next frame; `None` at a clean end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, NetError> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(self.missing().max(1024));
            let count = self.stream.read_buf(&mut self.buffer).await.map_err(NetError::closed)?;
            if count == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(NetError::closed("it ended inside a frame"))
                };
            }
        }
    }

    fn length(&self) -> Option<usize> {
        let head = self.buffer.first_chunk::<LENGTH_BYTES>()?;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    }

    fn missing(&self) -> usize {
        self.length().map_or(0, |length| (length + LENGTH_BYTES).saturating_sub(self.buffer.len()))
    }

    fn take(&mut self) -> Result<Option<Vec<u8>>, NetError> {
        let Some(length) = self.length() else { return Ok(None) };
        check(length, self.limit_bytes)?;
        if self.buffer.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        let frame = self.buffer.split_to(length).to_vec();
        if self.buffer.is_empty() && length > KEPT_BYTES {
            self.buffer = BytesMut::new();
        }
        Ok(Some(frame))
    }
}

/// Reads one frame and not a byte after it, from a stream that goes on with something else.
pub(crate) async fn read_frame<R: AsyncRead + Unpin>(
    stream: &mut R,
    limit_bytes: usize,
) -> Result<Vec<u8>, NetError> {
    let length = stream.read_u32().await.map_err(NetError::closed)? as usize;
    check(length, limit_bytes)?;
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await.map_err(NetError::closed)?;
    Ok(frame)
}

/// Writes one frame whole.
pub(crate) async fn write_frame<W: AsyncWrite + Unpin>(
    stream: &mut W,
    frame: &[u8],
    limit_bytes: usize,
) -> Result<(), NetError> {
    check(frame.len(), limit_bytes)?;
    let length = u32::try_from(frame.len())
        .map_err(|_| NetError::FrameTooLarge { bytes: frame.len(), limit_bytes })?;
    stream.write_all(&length.to_be_bytes()).await.map_err(NetError::closed)?;
    stream.write_all(frame).await.map_err(NetError::closed)
}

pub(crate) fn check(bytes: usize, limit_bytes: usize) -> Result<(), NetError> {
    if bytes > limit_bytes { Err(NetError::FrameTooLarge { bytes, limit_bytes }) } else { Ok(()) }
}
