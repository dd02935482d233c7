//! Measures the engines: 4 KiB random reads and writes, operations per second and per CPU-second.
//!
//! `cargo run --release -p nyx-block --example queue_rate -- FOLDER…`, with one folder on tmpfs and
//! one on a disk.

#![expect(
    clippy::unwrap_used,
    reason = "a measurement that cannot be made ends with the reason"
)]

use nyx_block::{Engine, Raw, RawConfig};
use nyx_device::{BlockBackend, BlockDone, BlockOp, BlockQueue, BlockRequest};
use nyx_memory::{Extent, Memory, PinnedBuffers, RamConfig};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::time::{Duration, Instant};
use vm_memory::{GuestAddress, Permissions};

const SIZE: u64 = 256 << 20;
const LEN: usize = 4096;
const TIME: Duration = Duration::from_millis(700);

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn wait(queue: &dyn BlockQueue) {
    if let Some(fd) = queue.ready_fd() {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        // Interrupted: the caller looks and comes back.
        let _ = poll(&mut fds, None);
    }
}

fn measure(queue: &mut dyn BlockQueue, depth: usize, write: bool, memory: &Memory) -> (f64, f64) {
    let space = memory.space();
    let view = space.view();
    let pin = |i: usize| {
        let mut buffers = view.buffers();
        let at = GuestAddress((i * LEN) as u64);
        view.pin(&mut buffers, at, LEN, Permissions::Write).unwrap();
        buffers
    };
    let mut free: Vec<PinnedBuffers> = (0..depth).map(pin).collect();
    let mut done: Vec<BlockDone> = Vec::new();
    let mut dice = 88_172_645_463_325_252u64;
    let (start, start_cpu, mut count) = (Instant::now(), cpu(), 0u64);
    while start.elapsed() < TIME {
        for _ in 0..32 {
            while let Some(buffers) = free.pop() {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                let offset = dice % (SIZE / LEN as u64) * LEN as u64;
                let op = if write {
                    BlockOp::Write(buffers)
                } else {
                    BlockOp::Read(buffers)
                };
                queue.submit(BlockRequest { id: 0, offset, op });
            }
            queue.kick().unwrap();
            queue.completions(&mut done);
            while done.is_empty() {
                wait(queue);
                queue.completions(&mut done);
            }
            count += done.len() as u64;
            for done in done.drain(..) {
                done.result.unwrap();
                free.push(done.buffers.unwrap());
            }
        }
    }
    let (elapsed, used) = (start.elapsed(), cpu() - start_cpu);
    while queue.in_flight() != 0 {
        wait(queue);
        queue.completions(&mut done);
    }
    (
        count as f64 / elapsed.as_secs_f64(),
        count as f64 / used.as_secs_f64(),
    )
}

fn main() {
    let extents = vec![Extent {
        base: GuestAddress(0),
        len: 8 << 20,
    }];
    let memory = Memory::allocate(&RamConfig {
        extents,
        prefault: true,
        ..RamConfig::default()
    })
    .unwrap();
    println!(
        "{:34} {:>5} {:>6} {:>12} {:>12}",
        "medium", "depth", "op", "per second", "per CPU-s"
    );
    for folder in std::env::args().skip(1) {
        let path = Path::new(&folder).join("queue-rate.img");
        std::fs::write(&path, vec![0x5a; SIZE as usize]).unwrap();
        for direct in [false, true] {
            for engine in [Engine::Auto, Engine::Sync, Engine::IoUring, Engine::Threads] {
                let config = RawConfig {
                    engine,
                    direct,
                    ..RawConfig::new(&path)
                };
                let backend = match Raw::open(config) {
                    Ok(backend) => backend,
                    Err(e) => {
                        println!("{e}");
                        continue;
                    }
                };
                for depth in [1, 32] {
                    for write in [false, true] {
                        let mut queue = backend.open_queue().unwrap();
                        let (rate, per_cpu) = measure(queue.as_mut(), depth, write, &memory);
                        let medium =
                            format!("{folder} {engine:?}{}", if direct { " direct" } else { "" });
                        let op = if write { "write" } else { "read" };
                        println!("{medium:34} {depth:>5} {op:>6} {rate:>12.0} {per_cpu:>12.0}");
                    }
                }
            }
        }
        std::fs::remove_file(&path).unwrap();
    }
}
