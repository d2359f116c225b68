export { TestClock } from '../../src/testing/turned-clock.js'
