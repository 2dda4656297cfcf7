-- Begins a new epoch of a key that the upstream rejected, and publishes that. The dead epoch is kept for replicas that
-- do not hear it. Field d has the time of the rejection: attempts that began before it land no more. Where the engine knows
-- no epoch, for example after a restart, one that no state has dies. A call that is repeated does nothing if the engine
-- remembers the rejection or a later one, or if the key was accepted since. One that is earlier by the margin is the same.
-- KEYS: channel, domain
-- ARGV: message, new epoch, lifetime of the domain, age of the rejection, time of sending or '', margin
--       if it is repeated or '',
--       epoch that dies if there is none, lifetime of a domain that was never accepted
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local delay = ARGV[5] == '' and 0 or math.max(now - tonumber(ARGV[5]), 0)
local age, margin = tonumber(ARGV[4]) + delay, tonumber(ARGV[6])
local at = now - age
local domain = redis.call('HMGET', KEYS[2], 'e', 'd', 'a')
local dead, known, accepted = domain[1], tonumber(domain[2] or '') or 0, tonumber(domain[3] or '') or 0
if not (margin and (known + margin >= at or accepted > at)) then
    redis.call('HDEL', KEYS[2], 'a')
    redis.call('HSET', KEYS[2], 'e', ARGV[2], 'x', dead or ARGV[7], 'r', now, 'd',
        string.format('%.0f', math.max(at, known)))
    if accepted > 0 then
        redis.call('PEXPIRE', KEYS[2], ARGV[3])
    elseif dead then
        redis.call('PEXPIRE', KEYS[2], ARGV[8], 'GT')
    else
        redis.call('PEXPIRE', KEYS[2], ARGV[8])
    end
    redis.call('SPUBLISH', KEYS[1], ARGV[1] .. (dead or ARGV[7]) .. string.format('%014.0f', age))
end
return {'D', now}
