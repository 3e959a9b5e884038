//! Streams that go on for as long as they may, and both of their ends. Not a test itself.
#![allow(dead_code)] // each test file uses some of it

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::{Side, World, eventually};

/// The two ends of a connection on which nothing is said, the opener's first.
pub fn idle(world: &World, from: Side, to: Side, address: &str, port: u16) -> (TcpStream, TcpStream) {
    let address = SocketAddr::new(address.parse().expect("an address"), port);
    let listener = world.within(to, || TcpListener::bind(address)).expect("the port is free");
    let mut near = None;
    // Neighbours have to find each other first.
    eventually("the way is open", || {
        near = world.within(from, || TcpStream::connect_timeout(&address, Duration::from_millis(500))).ok();
        near.is_some()
    });
    let (near, (far, _)) = (near.expect("a connection"), listener.accept().expect("the connection is there"));
    for end in [&near, &far] {
        end.set_write_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        end.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    }
    (near, far)
}

/// A connection whose opener writes all the time.
pub struct Stream {
    opener: SocketAddr,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    writer: Arc<Mutex<Option<(ErrorKind, Instant)>>>,
    reader: Arc<Mutex<Option<Option<ErrorKind>>>>,
}

impl Stream {
    /// Opens one from a side to a port that nobody serves yet at an address of another side, and has octets on the way.
    pub fn open(world: &World, from: Side, to: Side, address: &str, port: u16) -> Stream {
        let (near, far) = idle(world, from, to, address, port);
        let stream = Stream::between(near, far);
        stream.goes_on();
        stream
    }

    fn between(mut near: TcpStream, mut far: TcpStream) -> Stream {
        let opener = near.local_addr().expect("it is connected");
        let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (writer, reader) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
        let (count, end) = (sent.clone(), writer.clone());
        thread::spawn(move || {
            let error = loop {
                match near.write(&[7; 64]) {
                    Ok(length) => count.fetch_add(length as u64, Ordering::SeqCst),
                    Err(error) => break error.kind(),
                };
                thread::sleep(Duration::from_millis(1));
            };
            *end.lock().unwrap() = Some((error, Instant::now()));
        });
        let (count, end) = (received.clone(), reader.clone());
        thread::spawn(move || {
            let mut octets = [0; 4096];
            let why = loop {
                match far.read(&mut octets) {
                    Ok(0) => break None,
                    Ok(length) => count.fetch_add(length as u64, Ordering::SeqCst),
                    Err(error) => break Some(error.kind()),
                };
            };
            *end.lock().unwrap() = Some(why);
        });
        Stream { opener, sent, received, writer, reader }
    }

    /// The end of whoever opened it.
    pub fn opener(&self) -> SocketAddr {
        self.opener
    }

    /// Panics unless octets arrive.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.received.load(Ordering::SeqCst);
        eventually("octets arrive", || self.received.load(Ordering::SeqCst) > before);
        assert!(self.writer.lock().unwrap().is_none() && self.reader.lock().unwrap().is_none());
    }

    /// What the writer got, once it has got an error.
    #[track_caller]
    pub fn error(&self) -> ErrorKind {
        eventually("the writer gets an error", || self.writer.lock().unwrap().is_some());
        self.writer.lock().unwrap().expect("an error").0
    }

    /// When it got it.
    pub fn ended(&self) -> Instant {
        self.error();
        self.writer.lock().unwrap().expect("an error").1
    }

    /// What the reader got at the end: nothing when the other side closed in order, an error otherwise.
    #[track_caller]
    pub fn farewell(&self) -> Option<ErrorKind> {
        eventually("the reader is told", || self.reader.lock().unwrap().is_some());
        self.reader.lock().unwrap().expect("an end")
    }

    /// Panics if an octet arrives from now on.
    #[track_caller]
    pub fn is_silent(&self) {
        // What was on the cable already has arrived by then.
        thread::sleep(Duration::from_millis(20));
        let before = self.received.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(300));
        assert_eq!(self.received.load(Ordering::SeqCst), before, "octets arrive still");
    }
}
