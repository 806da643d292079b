import { assertThrows } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { Machine, PPC_HOSTS, type PpcHostName, type PpcVmOptions } from "../../../host/mod.ts";

describe("a PowerPC virtual machine", () => {
  it("cannot be built of what there is not", () => {
    const bytes = new Uint8Array(0x1_0000);
    const large = { root: { properties: { model: bytes }, children: {} } };
    const refused: readonly (readonly [options: PpcVmOptions, message: string])[] = [
      [{ host: "e500v2", order: "little" }, "a little-endian guest on e500v2: on booke allowed is big"],
      [{ host: "book3s-32-pr", order: "little" }, "on book3s-32-pr: on book3s-32 allowed is big"],
      [{ deviceTree: large }, "Cannot place a device tree of "],
      [{ memory: 0x8000 }, "Cannot place a device tree of "],
      [{ vcpus: 65 }, "Cannot build a virtual machine of 65 vCPUs: allowed are 1 to 64"],
    ];
    for (const [options, message] of refused) {
      assertThrows(() => new Machine().createPpcVm(options), RangeError, message);
    }
    // Names of every object's are no hosts' either.
    for (const host of ["xen", "toString"]) {
      assertThrows(
        () => new Machine().createPpcVm({ host: host as PpcHostName }),
        RangeError,
        `Cannot run a guest on ${host}: allowed are ${Object.keys(PPC_HOSTS).join(", ")}`,
      );
    }
  });
});
