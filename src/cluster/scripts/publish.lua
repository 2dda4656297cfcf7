-- Publishes a message.
-- KEYS: channel
-- ARGV: message
local time = redis.call('TIME')
redis.call('SPUBLISH', KEYS[1], ARGV[1])
return {'D', time[1] * 1000 + math.floor(time[2] / 1000)}
