/**
 * Every `@std` module that the tests import: whether the genuine ones can be had is found out by fetching this.
 *
 * @module
 */

import "@std/assert";
import "@std/testing/bdd";
