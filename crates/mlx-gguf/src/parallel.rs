//! Work on the blocks of a tensor by several threads.

use std::thread;

use crate::TensorType;

/// The fewest bytes for which another thread is worth its start.
const WORTH: usize = 1 << 16;

/// The results of `part` for neighbouring parts of these blocks, in their order. Each part has whole blocks, and a thread of its
/// own where it is worth one.
pub fn in_parallel<T: Send>(kind: TensorType, blocks: &[u8], part: impl Fn(&[u8]) -> T + Sync) -> Vec<T> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(blocks.len() / WORTH);
    if threads < 2 {
        return vec![part(blocks)];
    }
    let count = blocks.len() / kind.block_bytes();
    let bytes = count.div_ceil(threads).max(1) * kind.block_bytes();
    thread::scope(|scope| {
        let part = &part;
        let running: Vec<_> = blocks.chunks(bytes).map(|chunk| scope.spawn(move || part(chunk))).collect();
        let joined = running.into_iter().map(|thread| thread.join());
        joined.map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_whole_blocks_and_their_order() {
        for count in [1, 5000, 20_001] {
            let blocks: Vec<u8> = (0..18 * count).map(|byte| (byte / 18 % 251) as u8).collect();
            let parts = in_parallel(TensorType::Q4_0, &blocks, |part| {
                assert_eq!(part.len() % 18, 0);
                part.to_vec()
            });
            assert_eq!(parts.concat(), blocks);
        }
    }
}
