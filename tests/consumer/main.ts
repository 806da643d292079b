/**
 * What somebody writes who depends on the package: it is imported by the names that it exports, as if from JSR.
 *
 * @module
 */

import { Machine } from "@exitless/exitless";
import { KVM_FEATURES, Text } from "@exitless/exitless/abi";
import { command } from "@exitless/exitless/cli";
import { hypercall, Kernel } from "@exitless/exitless/guest";
import type { RunResult, Vm } from "@exitless/exitless/host";
import { EXPERIMENTS } from "@exitless/exitless/lab";

const outcomes: number[] = [];
const text = new Text();
const entry = text.add(function* main(cpu) {
  outcomes.push(yield* hypercall(cpu, "KVM_HC_VAPIC_POLL_IRQ", {}));
  // @ts-expect-error The types arrive too: this call has no such argument.
  yield* hypercall(cpu, "KVM_HC_VAPIC_POLL_IRQ", { processor: 0 });
});

const vm: Vm = new Machine().createVm({ memory: 2 ** 21 });
vm.load(text);
vm.start(entry);
const { end }: RunResult = vm.machine.run();

console.log(JSON.stringify({
  end,
  outcomes,
  hypercalls: vm.counters().kvm_hypercall,
  pvEoi: KVM_FEATURES.PV_EOI.bit,
  kernel: new Kernel({ *main() {} }).cpus,
  experiments: EXPERIMENTS.map(({ name }) => name),
  code: command(["list"], 80).code,
}));
