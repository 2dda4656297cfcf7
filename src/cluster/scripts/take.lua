-- Counts requests against quotas. Replicas have let them pass already, so all are counted, up to a greatest debt. Answers
-- with the time in microseconds until each quota is full again.
-- KEYS: quotas
-- ARGV: for each quota: time in which it regains the requests, greatest time until it is full, in microseconds
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answer = {'Q'}
for n, key in ipairs(KEYS) do
    local full_at = tonumber(redis.call('GET', key) or '') or now
    local full_in = math.min(math.max(full_at - now, 0) + ARGV[2 * n - 1], tonumber(ARGV[2 * n]))
    redis.call('SET', key, string.format('%.0f', now + full_in), 'PX', math.max(math.ceil(full_in / 1000), 1))
    answer[#answer + 1] = math.floor(full_in)
end
return answer
