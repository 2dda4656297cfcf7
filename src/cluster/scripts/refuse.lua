-- Ends the epoch of a key that the upstream rejected, and publishes that.
-- KEYS: channel, domain
-- ARGV: message
local time = redis.call('TIME')
local dead = redis.call('HGET', KEYS[2], 'e')
if dead then
    redis.call('DEL', KEYS[2])
    redis.call('SPUBLISH', KEYS[1], ARGV[1] .. dead)
end
return {'D', time[1] * 1000 + math.floor(time[2] / 1000)}
