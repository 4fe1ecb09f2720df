//! A slice of atomic words and who owns it: heap, a sealed memfd, a foreign sealed memfd, or a mapped file.
//!
//! Called by every other file of the segment and by the daemon's pending log. Offers only Relaxed loads and stores of whole
//! words and copies made of them: no `&[u8]` and no `memcpy` over memory that another process may be writing.
//! Must never let a store reach memory that is mapped read-only (it would be a signal, not an error): stores are bounded by
//! `writable_len`, which is zero there.

use std::sync::Arc;

use super::sync::{AtomicU64, Ordering};

/// Bytes of a word.
pub const WORD_BYTES: usize = 8;

/// Words that hold `bytes` bytes.
#[must_use]
pub const fn words_for(bytes: usize) -> usize {
    bytes.div_ceil(WORD_BYTES)
}

/// A slice of `AtomicU64` with its owner. Every access is Relaxed: order comes from the fences of the callers.
///
/// Indices are checked: one beyond the end is a bug of the caller and panics. So does a store to memory that was mapped
/// read-only ([`Words::is_writable`]).
#[derive(Debug)]
pub struct Words {
    memory: Memory,
    /// Length for stores: `len`, or 0 where the memory is mapped read-only.
    writable_len: usize,
}

#[cfg(loom)]
type Memory = Box<[AtomicU64]>;
#[cfg(not(loom))]
type Memory = raw::Memory;

/// The words themselves, without the owner: what a read holds, so that address and length stay in registers across fences.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a>(&'a [AtomicU64]);

impl View<'_> {
    /// Loads word `i`, Relaxed.
    #[inline]
    pub(super) fn load(self, i: usize) -> u64 {
        self.0[i].load(Ordering::Relaxed)
    }

    /// Loads the `N` words from `at` on, each Relaxed.
    #[inline]
    pub(super) fn load_some<const N: usize>(self, at: usize) -> [u64; N] {
        let words = &self.0[at..][..N];
        std::array::from_fn(|i| words[i].load(Ordering::Relaxed))
    }

    /// Appends the `bytes` bytes that begin at word `at` to `out`.
    #[cfg(not(loom))]
    #[inline]
    pub(super) fn copy_out(self, at: usize, bytes: usize, out: &mut Vec<u8>) {
        let from = &self.0[at..][..words_for(bytes)];
        raw::append(from, bytes, out);
    }

    /// Appends the `bytes` bytes that begin at word `at` to `out`.
    #[cfg(loom)]
    pub(super) fn copy_out(self, at: usize, bytes: usize, out: &mut Vec<u8>) {
        let end = out.len() + bytes;
        for i in 0..words_for(bytes) {
            out.extend_from_slice(&self.load(at + i).to_le_bytes());
        }
        out.truncate(end);
    }

    /// Tells the processor that word `i` will be read soon. No effect beyond speed; any `i` is allowed.
    #[inline]
    pub(super) fn prefetch(self, i: usize) {
        #[cfg(all(not(loom), target_arch = "x86_64"))]
        if let Some(word) = self.0.get(i) {
            raw::prefetch(word);
        }
        #[cfg(not(all(not(loom), target_arch = "x86_64")))]
        let _ = i;
    }
}

impl Words {
    /// `len` zero words on the heap. Pages are taken from the system when first written.
    #[must_use]
    pub fn heap(len: usize) -> Arc<Words> {
        #[cfg(loom)]
        let memory: Memory = (0..len).map(|_| AtomicU64::new(0)).collect();
        #[cfg(not(loom))]
        let memory = raw::Memory::heap(len);
        Arc::new(Words { memory, writable_len: len })
    }

    #[cfg(not(loom))]
    pub(super) fn mapped(memory: raw::Memory, writable: bool) -> Arc<Words> {
        let writable_len = if writable { memory.slice().len() } else { 0 };
        Arc::new(Words { memory, writable_len })
    }

    #[cfg(loom)]
    #[inline]
    fn slice(&self) -> &[AtomicU64] {
        &self.memory
    }

    #[cfg(not(loom))]
    #[inline]
    pub(super) fn slice(&self) -> &[AtomicU64] {
        self.memory.slice()
    }

    #[inline]
    pub(super) fn view(&self) -> View<'_> {
        View(self.slice())
    }

    /// How many words.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.slice().len()
    }

    /// Whether there is no word at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether stores are allowed: not on what [`Words::attach`] mapped.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable_len == self.len()
    }

    /// Loads word `i`, Relaxed.
    #[must_use]
    #[inline]
    pub fn load(&self, i: usize) -> u64 {
        self.slice()[i].load(Ordering::Relaxed)
    }

    /// Stores word `i`, Relaxed.
    #[inline]
    pub fn store(&self, i: usize, value: u64) {
        self.slice()[..self.writable_len][i].store(value, Ordering::Relaxed);
    }

    /// Adds to word `i`, Relaxed; gives what was there. Adding zero makes the page writable without changing it.
    #[inline]
    pub fn fetch_add(&self, i: usize, add: u64) -> u64 {
        self.slice()[..self.writable_len][i].fetch_add(add, Ordering::Relaxed)
    }

    /// Copies `bytes` into the words from `at` on; the last word is padded with zeros.
    pub fn copy_in(&self, at: usize, bytes: &[u8]) {
        let to = &self.slice()[..self.writable_len][at..at + words_for(bytes.len())];
        let mut quads = to.chunks_exact(4);
        let mut parts = bytes.chunks_exact(4 * WORD_BYTES);
        for (words, part) in quads.by_ref().zip(parts.by_ref()) {
            words[0].store(word(&part[0..8]), Ordering::Relaxed);
            words[1].store(word(&part[8..16]), Ordering::Relaxed);
            words[2].store(word(&part[16..24]), Ordering::Relaxed);
            words[3].store(word(&part[24..32]), Ordering::Relaxed);
        }
        let rest = &to[bytes.len() / (4 * WORD_BYTES) * 4..];
        for (word_to, part) in rest.iter().zip(parts.remainder().chunks(WORD_BYTES)) {
            let mut last = [0; WORD_BYTES];
            last[..part.len()].copy_from_slice(part);
            word_to.store(u64::from_le_bytes(last), Ordering::Relaxed);
        }
    }

    /// Appends the `bytes` bytes that begin at word `at` to `out`.
    #[inline]
    pub fn copy_out(&self, at: usize, bytes: usize, out: &mut Vec<u8>) {
        self.view().copy_out(at, bytes, out);
    }

    /// Copies `count` words from `at` on to the same place of other memory.
    #[cfg(not(loom))]
    pub(super) fn copy_to(&self, other: &Words, at: usize, count: usize) {
        let source = &self.slice()[at..at + count];
        let target = &other.slice()[..other.writable_len][at..at + count];
        for (s, t) in source.iter().zip(target) {
            t.store(s.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Copies `count` words from `from` to `to` inside this memory. The two must not overlap.
    pub fn copy_within(&self, from: usize, to: usize, count: usize) {
        assert!(from.abs_diff(to) >= count, "an item is never copied onto itself");
        let source = &self.slice()[from..from + count];
        let target = &self.slice()[..self.writable_len][to..to + count];
        for (s, t) in source.iter().zip(target) {
            t.store(s.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

#[inline]
fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("callers cut eight bytes"))
}

/// The memory itself, where pointers are: a heap block or a mapping.
#[cfg(not(loom))]
pub(super) mod raw {
    use std::ffi::c_void;
    use std::ptr::NonNull;

    use super::{AtomicU64, Ordering, WORD_BYTES};

    /// Words at a fixed address, freed or unmapped when dropped.
    #[derive(Debug)]
    pub(crate) struct Memory {
        start: NonNull<AtomicU64>,
        len: usize,
        is_map: bool,
    }

    // SAFETY: a `Memory` owns its block or mapping, which has no tie to a thread.
    unsafe impl Send for Memory {}
    // SAFETY: all access through `&Memory` is by atomics.
    unsafe impl Sync for Memory {}

    const _: () = assert!(size_of::<AtomicU64>() == size_of::<u64>());
    const _: () = assert!(align_of::<AtomicU64>() == align_of::<u64>());

    impl Memory {
        pub(crate) fn heap(len: usize) -> Memory {
            // Zeroed by the allocator, which for large blocks means untouched pages.
            let block: *mut [u64] = Box::into_raw(vec![0u64; len].into_boxed_slice());
            let start = NonNull::new(block.cast::<AtomicU64>()).expect("a box is never null");
            Memory { start, len, is_map: false }
        }

        /// Takes over a mapping of `len` words.
        ///
        /// # Safety
        /// `start` must be the beginning of a mapping of at least `len` words that nobody else unmaps, that is readable, and
        /// whose pages cannot go away (sealed against shrinking, or a file only its owner changes).
        pub(crate) unsafe fn map(start: NonNull<c_void>, len: usize) -> Memory {
            Memory { start: start.cast(), len, is_map: true }
        }

        #[inline]
        pub(crate) fn slice(&self) -> &[AtomicU64] {
            // SAFETY: `start` and `len` describe the block or mapping owned by self, aligned to at least 8 bytes; every access
            // by anyone is atomic. On read-only pages only loads happen: `Words::writable_len` is 0 there.
            unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            if self.is_map {
                // SAFETY: the mapping belongs to self (contract of `map`), and no slice of it outlives self.
                let unmapped =
                    unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len * WORD_BYTES) };
                debug_assert!(unmapped.is_ok());
            } else {
                let block = std::ptr::slice_from_raw_parts_mut(self.start.as_ptr().cast::<u64>(), self.len);
                // SAFETY: `heap` got this block from a box of the same type and length.
                drop(unsafe { Box::from_raw(block) });
            }
        }
    }

    /// Appends `bytes` bytes of `from` to `out`, word by word.
    #[inline]
    pub(super) fn append(from: &[AtomicU64], bytes: usize, out: &mut Vec<u8>) {
        assert!(bytes <= from.len() * WORD_BYTES);
        out.reserve(from.len() * WORD_BYTES);
        let to = out.spare_capacity_mut().as_mut_ptr().cast::<u64>();
        let done = copy_lines(from, to);
        let from = &from[done..];
        // SAFETY: `done` words of the room were filled.
        let to = unsafe { to.add(done) };
        let quads = from.chunks_exact(4);
        let rest = quads.remainder();
        for (i, quad) in quads.enumerate() {
            let (a, b, c, d) = (
                quad[0].load(Ordering::Relaxed),
                quad[1].load(Ordering::Relaxed),
                quad[2].load(Ordering::Relaxed),
                quad[3].load(Ordering::Relaxed),
            );
            // SAFETY: `reserve` made room for all words of `from`, and `i * 4 + 3` is one of them.
            let to = unsafe { to.add(i * 4) }.cast::<[u64; 4]>();
            // SAFETY: as above; the pointer need not be aligned.
            unsafe { to.write_unaligned([a, b, c, d].map(u64::to_le)) };
        }
        for (i, word) in rest.iter().enumerate() {
            let word = word.load(Ordering::Relaxed).to_le();
            let at = from.len() - rest.len() + i;
            // SAFETY: as above; `at` is below `from.len()`.
            let to = unsafe { to.add(at) };
            // SAFETY: as above; the pointer need not be aligned.
            unsafe { to.write_unaligned(word) };
        }
        // SAFETY: the first `bytes` bytes of the spare capacity were written above.
        unsafe { out.set_len(out.len() + bytes) };
    }

    /// Copies what there is of whole cache lines, and says how many words that were; the rest is left to a loop over words. The
    /// fewer instructions a copy has, the sooner the processor begins with what comes after it.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline]
    fn copy_lines(from: &[AtomicU64], to: *mut u64) -> usize {
        const LINE_WORDS: usize = 8;
        let lines = from.len() / LINE_WORDS;
        if lines == 0 || !std::arch::is_x86_feature_detected!("avx") {
            return 0;
        }
        // 32 bytes at a time, which no load of `std` may do on memory that somebody else writes. What comes out torn is thrown
        // away like any other torn word: the tail has passed the item then. Loads stay in order on this machine.
        // SAFETY: callers made room at `to` for all words of `from`; `lines` lines are within both; nothing else is touched.
        unsafe {
            std::arch::asm!(
                "2:",
                "vmovdqu ymm14, [{from}]",
                "vmovdqu ymm15, [{from} + 32]",
                "vmovdqu [{to}], ymm14",
                "vmovdqu [{to} + 32], ymm15",
                "add {from}, 64",
                "add {to}, 64",
                "dec {lines}",
                "jnz 2b",
                "vzeroupper",
                from = inout(reg) from.as_ptr() => _,
                to = inout(reg) to => _,
                lines = inout(reg) lines => _,
                out("xmm14") _,
                out("xmm15") _,
                options(nostack),
            );
        }
        lines * LINE_WORDS
    }

    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    fn copy_lines(_from: &[AtomicU64], _to: *mut u64) -> usize {
        0
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub(super) fn prefetch(word: &AtomicU64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing architecturally, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(word).cast()) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_at_every_length_and_offset() {
        let words = Words::heap(40);
        for len in 0..200 {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
            for at in [0, 1, 5, 15] {
                words.copy_in(at, &bytes);
                let mut out = b"before".to_vec();
                words.copy_out(at, len, &mut out);
                assert_eq!(&out[..6], b"before");
                assert_eq!(&out[6..], bytes);
            }
        }
    }

    #[test]
    fn large_copies_come_back_at_every_length() {
        let words = Words::heap(600);
        for len in (1_000..1_200).chain([4_095, 4_096, 4_097]) {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
            words.copy_in(3, &bytes);
            let mut out = b"before".to_vec();
            words.copy_out(3, len, &mut out);
            assert_eq!(&out[..6], b"before");
            assert_eq!(&out[6..], bytes);
        }
    }

    #[test]
    fn the_last_word_is_padded_with_zeros() {
        let words = Words::heap(2);
        words.store(0, u64::MAX);
        words.copy_in(0, b"abc");
        assert_eq!(words.load(0), u64::from_le_bytes(*b"abc\0\0\0\0\0"));
    }

    #[test]
    fn copies_beyond_the_end_panic() {
        let words = Words::heap(4);
        for (at, len) in [(4, 1), (0, 33), (usize::MAX, 8), (3, 9)] {
            let out = std::panic::catch_unwind(|| words.copy_out(at, len, &mut Vec::new()));
            assert!(out.is_err(), "copy_out({at}, {len})");
            let out = std::panic::catch_unwind(|| words.copy_in(at, &vec![0; len]));
            assert!(out.is_err(), "copy_in({at}, {len})");
        }
    }
}
