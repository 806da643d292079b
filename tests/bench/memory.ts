/**
 * Builds the machine whose resident memory is limited, and prints the process's, in bytes.
 *
 * @module
 */

import { Machine } from "../../host/mod.ts";

const vm = new Machine().createVm({ vcpus: 80, memory: 64 * 2 ** 20 });
if (vm.vcpus.length !== 80) throw new Error("Cannot measure memory: there are not 80 vCPUs");
console.log(Deno.memoryUsage().rss);
