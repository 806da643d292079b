/**
 * DIAGNOSE 0x10: the guest releases pages, by their real addresses. A guest's real pages 0 and 1 are the absolute ones at
 * its prefix, and the other way round; KVM releases absolute pages (diag_release_pages in arch/s390/kvm/diag.c).
 *
 * @module
 */

/** A range of absolute addresses, the end not in it. */
export interface PageRange {
  /** First address. */
  readonly start: bigint;
  /** One past the last. */
  readonly end: bigint;
}

const PAGE = 4096n;
const PAGES_AT_PREFIX = 2n;

/**
 * The absolute ranges that the pages from `first` to `last` (the last page's address) are; undefined where the guest gets a
 * specification exception: an address is no page's, there is no page between them, or one is below 8 KiB.
 */
export function releasedRanges(
  first: bigint,
  last: bigint,
  prefix: bigint,
): readonly PageRange[] | undefined {
  const start = first;
  const end = BigInt.asUintN(64, last + PAGE);
  if (start % PAGE !== 0n || end % PAGE !== 0n || start >= end || start < PAGES_AT_PREFIX * PAGE) {
    return undefined;
  }
  const behindPrefix = prefix + PAGES_AT_PREFIX * PAGE;
  if (end <= prefix || start >= behindPrefix) return [{ start, end }];
  const ranges = [{ start, end: prefix }];
  // Real pages at the prefix are the absolute pages 0 and 1.
  if (start <= prefix) ranges.push({ start: 0n, end: PAGE });
  if (end > prefix + PAGE) ranges.push({ start: PAGE, end: PAGES_AT_PREFIX * PAGE });
  ranges.push({ start: behindPrefix, end });
  return ranges.filter((range) => range.start < range.end);
}
