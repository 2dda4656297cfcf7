-- Ends a lease if it has this token, and publishes a message.
-- KEYS: channel, poll
-- ARGV: token, message
local time = redis.call('TIME')
if redis.call('HGET', KEYS[2], 't') == ARGV[1] then redis.call('DEL', KEYS[2]) end
redis.call('SPUBLISH', KEYS[1], ARGV[2])
return {'D', time[1] * 1000 + math.floor(time[2] / 1000)}
