//! A connection that costs little: HTTP/1.1, kept alive, one request at a time, and of an answer only
//! what is needed to judge it.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes read at a time; most answers are smaller.
const READ_BYTES: usize = 16 * 1024;
/// An answer larger than this is a mistake.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    to: SocketAddr,
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The server said that it closes the connection after this answer.
    closing: bool,
}

/// An answer as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The status.
    pub status: u16,
    /// The status line and the headers.
    pub head: &'a [u8],
    /// The body.
    pub body: &'a [u8],
}

impl Answer<'_> {
    /// The answer as text, for messages.
    pub fn text(&self) -> String {
        format!("{}\n{}", String::from_utf8_lossy(self.head).trim_end(), String::from_utf8_lossy(self.body))
    }

    /// Whether a header line is there, written as the service writes it.
    pub fn has(&self, line: &str) -> bool {
        self.head
            .split(|byte| *byte == b'\n')
            .any(|found| found.trim_ascii().eq_ignore_ascii_case(line.as_bytes()))
    }
}

impl Connection {
    /// Connects.
    pub async fn open(to: SocketAddr) -> Result<Self> {
        let stream = connect(to).await?;
        Ok(Self { to, stream, buffer: vec![0; READ_BYTES], closing: false })
    }

    /// Sends a request and waits for its answer.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        if self.closing {
            self.stream = connect(self.to).await?;
        }
        self.stream.write_all(request).await.context("sending a request")?;
        let mut filled = 0;
        let (status, head, end) = loop {
            filled += self.read(filled).await?;
            let arrived = self.buffer.get(..filled).unwrap_or_default();
            if let Some(head) = memmem::find(arrived, b"\r\n\r\n").map(|at| at + 4) {
                let head_bytes = arrived.get(..head).unwrap_or_default();
                let (status, length) = read_head(head_bytes)?;
                break (status, head, head + length);
            }
        };
        if end > ANSWER_BYTES_MAX {
            bail!("an answer of {end} bytes");
        }
        if end > self.buffer.len() {
            self.buffer.resize(end, 0);
        }
        while filled < end {
            filled += self.read(filled).await?;
        }
        if filled > end {
            bail!("{} bytes after the end of an answer", filled - end);
        }
        let (head, body) =
            self.buffer.get(..end).unwrap_or_default().split_at_checked(head).unwrap_or_default();
        let answer = Answer { status, head, body };
        // Only refusals of what was not read to its end close the connection.
        self.closing = status >= 400 && answer.has("connection: close");
        Ok(answer)
    }

    async fn read(&mut self, filled: usize) -> Result<usize> {
        if filled == self.buffer.len() {
            self.buffer.resize(filled * 2, 0);
        }
        let room = self.buffer.get_mut(filled..).unwrap_or_default();
        match self.stream.read(room).await.context("reading an answer")? {
            0 => bail!("the connection was closed before the answer was complete"),
            bytes => Ok(bytes),
        }
    }
}

async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Status and length of the body.
fn read_head(head: &[u8]) -> Result<(u16, usize)> {
    let wrong = || format!("an answer that begins {:?}", String::from_utf8_lossy(head));
    let number =
        |bytes: &[u8]| std::str::from_utf8(bytes).ok().and_then(|text| text.trim().parse::<usize>().ok());
    let status =
        head.strip_prefix(b"HTTP/1.1 ").and_then(|rest| number(rest.get(..3)?)).with_context(wrong)?;
    const LENGTH: &[u8] = b"\r\ncontent-length:";
    let length = memmem::find(head, LENGTH).or_else(|| memmem::find(&head.to_ascii_lowercase(), LENGTH));
    let length = length
        .and_then(|at| head.get(at + LENGTH.len()..))
        .and_then(|rest| number(rest.split(|byte| *byte == b'\r').next()?))
        .with_context(wrong)?;
    Ok((u16::try_from(status)?, length))
}

/// One request over a connection of its own, for looking at a service; gives status and body.
pub async fn get(from: SocketAddr, path: &str, token: Option<&str>) -> Result<(u16, String)> {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}\r\n");
    let mut connection = Connection::open(from).await?;
    let answer = connection.exchange(request.as_bytes()).await?;
    Ok((answer.status, String::from_utf8_lossy(answer.body).into_owned()))
}

/// [`get`] for whoever does not run on tokio.
pub fn get_blocking(from: SocketAddr, path: &str, token: Option<&str>) -> Result<(u16, String)> {
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(get(from, path, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_gives_status_and_length_in_any_case() {
        let read = |head: &str| read_head(head.as_bytes()).unwrap();
        assert_eq!(read("HTTP/1.1 201 Created\r\ncontent-length: 905\r\nx: y\r\n\r\n"), (201, 905));
        assert_eq!(read("HTTP/1.1 409 Conflict\r\nContent-Length:7\r\n\r\n"), (409, 7));
        assert!(read_head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(read_head(b"SSH-2.0\r\n\r\n").is_err());
    }
}
