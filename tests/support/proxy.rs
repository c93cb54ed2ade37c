//! A TCP proxy that a test puts before a server, to delay what is said, to reset connections, to let them fall
//! silent without an end, and to lose what is said one way.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A proxy before one server; it ends when dropped.
pub struct Proxy {
    address: SocketAddr,
    network: watch::Sender<Network>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A way through the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// To the server: what is asked.
    There,
    /// From the server: what is answered.
    Back,
}

/// How the network does.
#[derive(Clone, Copy, Default)]
struct Network {
    /// How long everything takes.
    delay: Duration,
    /// Whether nothing arrives any more.
    is_silent: bool,
    /// Which way all that is said is lost.
    loses: Option<Way>,
    /// How often all connections were reset.
    resets: u64,
    /// Whether the test is over.
    is_over: bool,
}

impl Proxy {
    /// A proxy before whoever listens at `server` (`host:port`), on any port.
    pub fn before(server: &str) -> Self {
        let server: SocketAddr = server.parse().expect("an address");
        let (network, seen) = watch::channel(Network::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("its address");
        let thread = std::thread::spawn(move || runtime.block_on(serve(listener, server, seen)));
        Self { address, network, thread: Some(thread) }
    }

    /// Where it listens, `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on everything takes this long, each way.
    pub fn delay(&self, delay: Duration) {
        self.network.send_modify(|network| network.delay = delay);
    }

    /// From now on nothing arrives, and nobody is told; or it does again.
    pub fn be_silent(&self, is_silent: bool) {
        self.network.send_modify(|network| network.is_silent = is_silent);
    }

    /// From now on what is said this way is lost, and nobody is told; or no longer. A connection that has lost
    /// something never carries anything that way again: nobody is ever given an end without its beginning.
    pub fn lose(&self, way: Option<Way>) {
        self.network.send_modify(|network| network.loses = way);
    }

    /// Resets every connection.
    pub fn reset_all(&self) {
        self.network.send_modify(|network| network.resets += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.network.send_modify(|network| network.is_over = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, server: SocketAddr, network: watch::Receiver<Network>) {
    let mut over = network.clone();
    let accept = async {
        loop {
            let Ok((near, _)) = listener.accept().await else { continue };
            tokio::spawn(connect(near, server, network.clone()));
        }
    };
    tokio::select! {
        () = accept => {}
        _ = over.wait_for(|network| network.is_over) => {}
    }
}

async fn connect(near: TcpStream, server: SocketAddr, mut network: watch::Receiver<Network>) {
    let before = network.borrow().resets;
    let Ok(far) = TcpStream::connect(server).await else {
        let _ = near.set_zero_linger();
        return;
    };
    let (there, back) = (network.clone(), network.clone());
    tokio::select! {
        _ = async { tokio::try_join!(pump(&near, &far, Way::There, there), pump(&far, &near, Way::Back, back)) } => {}
        _ = network.wait_for(|network| network.resets != before || network.is_over) => {
            let _ = (near.set_zero_linger(), far.set_zero_linger());
        }
    }
}

/// Carries what comes `from` one side to the other until either has ended.
async fn pump(
    from: &TcpStream,
    to: &TcpStream,
    way: Way,
    mut network: watch::Receiver<Network>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut has_lost = false;
    loop {
        from.readable().await?;
        let count = match from.try_read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        has_lost |= network.borrow().loses == Some(way);
        if has_lost {
            continue;
        }
        let delay =
            network.wait_for(|network| !network.is_silent).await.map_or(Duration::ZERO, |now| now.delay);
        tokio::time::sleep(delay).await;
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            to.writable().await?;
            match to.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
