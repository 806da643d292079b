/**
 * Exitless: a laboratory for KVM's paravirtual interface. Guests and a host KVM are written against one typed ABI and
 * run on a simulated machine, in which every VM exit is counted, costed, traceable and repeatable.
 *
 * A guest is a generator, and each `yield` is one instruction. It runs on a {@linkcode Machine}, either by itself (see
 * {@linkcode Text}) or under a {@linkcode Kernel} that boots processors, takes interrupts and finds out what KVM offers.
 *
 * @example Does PV EOI save exits? Run a guest with it and without it
 * ```ts
 * import { encodeMsi, Kernel, Machine, MsiSource } from "@exitless/exitless";
 * import { assertEquals } from "@std/assert";
 *
 * function exits(disable: string[]): number {
 *   const kernel = new Kernel({
 *     disable,
 *     *main(cpu) {
 *       yield cpu.work(2_500_000); // a millisecond of computation
 *     },
 *   });
 *   kernel.irq(0x40, function* handler(cpu) {
 *     yield cpu.work(500);
 *   });
 *   const vm = new Machine().createVm();
 *   vm.load(kernel.text);
 *   vm.start(kernel.entry);
 *   new MsiSource(vm, {
 *     message: encodeMsi({ vector: 0x40, destination: 0 }, "xapic"),
 *     count: 20,
 *     start: 250_000,
 *     interval: () => 100_000,
 *   });
 *   vm.machine.run();
 *   return vm.counters().kvm_exit;
 * }
 *
 * const saved = exits(["pv-eoi"]) - exits([]);
 * assertEquals(saved, 20 - 4); // each interrupt's EOI, less three CPUIDs and one WRMSR that set PV EOI up
 * ```
 *
 * @module
 */

export * from "./abi/mod.ts";
export * from "./guest/mod.ts";
export * from "./host/mod.ts";
