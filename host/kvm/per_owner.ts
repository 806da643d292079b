/**
 * What is kept for a whole virtual machine, or for another owner, and made when it is first asked for.
 *
 * @module
 */

/** A look-up of what `make` has made for an owner: once for each, and gone with it. */
export function perOwner<Owner extends object, T extends object>(
  make: (owner: Owner) => T,
): (owner: Owner) => T {
  const made = new WeakMap<Owner, T>();
  return (owner) => {
    let kept = made.get(owner);
    if (kept === undefined) {
      kept = make(owner);
      made.set(owner, kept);
    }
    return kept;
  };
}
