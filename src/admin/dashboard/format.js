// Formats of numbers, sizes and times.

const full = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** Formats a count as 1,204, from a million on as 1.2M. */
export function count(number) {
  return Math.abs(number) < 1e6 ? full.format(number) : compact.format(number);
}

/** Formats a number with at most two digits after the point. */
export function decimal(number) {
  return String(Math.round(number * 100) / 100);
}

/** Formats a count with its noun: 1 wait, 2 waits. */
export function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** Formats a size as 3.2 MiB. */
export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, number)) / 10));
  const scaled = number / 1024 ** power;
  return `${scaled.toFixed(power > 0 && scaled < 10 ? 1 : 0)} ${units[power]}`;
}

/** Formats seconds as 42 s, 2 min 05 s, 3 h 12 min or 5 d 3 h. */
export function span(seconds) {
  const all = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  if (all < 60) return `${all} s`;
  if (all < 3600) return `${Math.floor(all / 60)} min ${two(all % 60)} s`;
  if (all < 86400) return `${Math.floor(all / 3600)} h ${two(Math.floor(all / 60) % 60)} min`;
  return `${Math.floor(all / 86400)} d ${Math.floor(all / 3600) % 24} h`;
}

/** Formats seconds for narrow columns: 42s, 2m05, 3h12, 5d3h. */
export function age(seconds) {
  return span(seconds)
    .replace(/^(\d+) s$/, "$1s")
    .replace(/^(\d+) min (\d+) s$/, "$1m$2")
    .replace(/^(\d+) h (\d+) min$/, "$1h$2")
    .replace(/^(\d+) d (\d+) h$/, "$1d$2h");
}

/** Formats a share of 0 to 1 in percent. Less than 1 is never rounded up to 100 %. */
export function percent(share) {
  const hundred = share * 100;
  return `${hundred > 99 && hundred < 100 ? Math.floor(hundred * 10) / 10 : Math.round(hundred)} %`;
}

/** Formats seconds of a short time: 0.4 ms, 12 ms, 1.3 s. */
export function millis(seconds) {
  const number = seconds * 1000;
  if (number >= 1000) return `${decimal(Math.round(seconds * 10) / 10)} s`;
  return `${number < 10 ? Math.round(number * 10) / 10 : Math.round(number)} ms`;
}

/** Formats two short times, with one unit where both have it: 0.4 / 12 ms. */
export function millisPair(one, other) {
  const [first, second] = [millis(one), millis(other)];
  const unit = / [a-z]+$/;
  const isSame = first.match(unit)?.[0] === second.match(unit)?.[0];
  return `${isSame ? first.replace(unit, "") : first} / ${second}`;
}

/** Formats the time of day with seconds. */
export function clock(millis) {
  return new Date(millis).toLocaleTimeString("en-GB");
}
