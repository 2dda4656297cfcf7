-- Stores the pause of a key, unless a longer one is stored, and publishes it.
-- KEYS: channel, pause
-- ARGV: message, time of the pause
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ends = now + tonumber(ARGV[2])
local known = tonumber(redis.call('GETRANGE', KEYS[2], 0, 13)) or 0
if ends > known then
    redis.call('SET', KEYS[2], string.format('%014.0f', ends) .. ARGV[1], 'PX', math.max(ends - now, 1))
end
redis.call('SPUBLISH', KEYS[1], ARGV[1])
return {'D', now}
