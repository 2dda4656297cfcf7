-- Removes a replica from the guests of a poll, and publishes a message.
-- KEYS: channel, poll
-- ARGV: me, message
local time = redis.call('TIME')
redis.call('HDEL', KEYS[2], 'g' .. ARGV[1])
redis.call('SPUBLISH', KEYS[1], ARGV[2])
return {'D', time[1] * 1000 + math.floor(time[2] / 1000)}
