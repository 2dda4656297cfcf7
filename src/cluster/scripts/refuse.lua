-- Begins a new epoch of a key that the upstream rejected, and publishes that. The dead epoch is kept for replicas that
-- do not hear it. A key that no replica has claimed a poll for has no epoch.
-- KEYS: channel, domain
-- ARGV: message, new epoch, lifetime of the domain
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dead = redis.call('HGET', KEYS[2], 'e')
if dead then
    redis.call('HDEL', KEYS[2], 'a')
    redis.call('HSET', KEYS[2], 'e', ARGV[2], 'x', dead, 'r', now)
    redis.call('PEXPIRE', KEYS[2], ARGV[3])
    redis.call('SPUBLISH', KEYS[1], ARGV[1] .. dead)
end
return {'D', now}
