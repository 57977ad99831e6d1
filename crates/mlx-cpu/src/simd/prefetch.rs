//! Hints to the processor to bring memory into its caches.

/// Asks for the cache line at `at` in the first-level cache. `at` may be any address.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint reads nothing that a program could see; SSE is part of the architecture.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// As [`prefetch`], but in the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_far<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// Asks for the memory that a stream of reads at `at` will reach soon. To be called for each cache line of the stream.
///
/// Far memory goes to the second-level cache, which waits for more lines at a time than the first-level cache. From
/// there it reaches the first-level cache in time. With both hints, products of one row read memory as fast as a loop
/// that only reads; with the near one alone, a sixth slower.
#[inline(always)]
pub(crate) fn prefetch_stream<T>(at: *const T) {
    let at = at.cast::<u8>();
    prefetch(at.wrapping_add(5 << 10));
    prefetch_far(at.wrapping_add(16 << 10));
}
