//! Sends a known stream both ways over one TCP connection and verifies every octet that comes.
//!
//! `ao-stream serve ADDRESS RATE END` accepts one connection, `ao-stream connect ADDRESS RATE END`
//! opens one. RATE is octets per second per direction. Either closes in order as soon as the file
//! END exists or the far end closes. Progress and result are lines on standard output.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command")]

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const BLOCK: usize = 16384;
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Octets so far.
#[derive(Default)]
struct Progress {
    sent: AtomicU64,
    received: AtomicU64,
    far_end_done: AtomicBool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", address, rate, end] => {
            number(rate).and_then(|rate| serve(address, rate, Path::new(end)))
        }
        ["connect", address, rate, end] => {
            number(rate).and_then(|rate| connect(address, rate, Path::new(end)))
        }
        _ => Err(io::Error::other(
            "usage: ao-stream serve|connect ADDRESS RATE END",
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("failed {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> io::Result<u64> {
    text.parse()
        .map_err(|error| io::Error::other(format!("{text}: {error}")))
}

fn serve(address: &str, rate: u64, end: &Path) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening");
    let (stream, peer) = listener.accept()?;
    println!("accepted {peer}");
    exchange(&stream, rate, end)
}

fn connect(address: &str, rate: u64, end: &Path) -> io::Result<()> {
    let stream = TcpStream::connect(address)?;
    println!("connected");
    exchange(&stream, rate, end)
}

/// Sends until the file `end` exists or the far end is done; receives until the far end is done.
fn exchange(stream: &TcpStream, rate: u64, end: &Path) -> io::Result<()> {
    let progress = Arc::new(Progress::default());
    let shown = progress.clone();
    thread::spawn(move || {
        loop {
            thread::sleep(REPORT_INTERVAL);
            show("progress", &shown);
        }
    });
    let mut incoming = stream.try_clone()?;
    let counted = progress.clone();
    let receiver = thread::spawn(move || receive(&mut incoming, &counted));
    send(stream, rate, end, &progress)?;
    stream.shutdown(Shutdown::Write)?;
    receiver
        .join()
        .map_err(|_| io::Error::other("the receiver panicked"))??;
    show("done", &progress);
    Ok(())
}

fn show(what: &str, progress: &Progress) {
    let sent = progress.sent.load(Ordering::Relaxed);
    let received = progress.received.load(Ordering::Relaxed);
    println!("{what} sent={sent} received={received}");
}

fn send(mut stream: &TcpStream, rate: u64, end: &Path, progress: &Progress) -> io::Result<()> {
    let start = Instant::now();
    let mut block = [0; BLOCK];
    let mut sent = 0_u64;
    while !progress.far_end_done.load(Ordering::Relaxed) && !end.exists() {
        let elapsed = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        if sent >= rate.saturating_mul(elapsed) / 1000 {
            thread::sleep(Duration::from_millis(1));
            continue;
        }
        fill(&mut block, sent);
        stream.write_all(&block)?;
        sent += BLOCK as u64;
        progress.sent.store(sent, Ordering::Relaxed);
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, progress: &Progress) -> io::Result<()> {
    let mut wanted = [0; BLOCK];
    let mut block = [0; BLOCK];
    let mut received = 0_u64;
    loop {
        fill(&mut wanted, received);
        let mut filled = 0;
        while filled < BLOCK {
            match stream.read(&mut block[filled..])? {
                0 if filled == 0 => {
                    progress.far_end_done.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                0 => return Err(io::Error::other(format!("cut off after {received} octets"))),
                count => filled += count,
            }
            progress
                .received
                .store(received + filled as u64, Ordering::Relaxed);
        }
        if block != wanted {
            let differs = wanted.iter().zip(&block).position(|(a, b)| a != b);
            let offset = received + differs.unwrap_or(0) as u64;
            return Err(io::Error::other(format!("corrupt at octet {offset}")));
        }
        received += BLOCK as u64;
    }
}

/// The stream's content at `offset`, a multiple of 8: SplitMix64 of the word's number.
fn fill(block: &mut [u8; BLOCK], offset: u64) {
    for (index, word) in (offset / 8..).zip(block.chunks_exact_mut(8)) {
        let mut value = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(value ^ (value >> 31)).to_le_bytes());
    }
}
