-- Answers for each key with the epoch that died, and with the time and the message of its pause; '' and 0 without them.
-- KEYS: for each key: domain, pause
-- ARGV: greatest age of a rejection
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {'E'}
for n = 1, #KEYS, 2 do
    local domain = redis.call('HMGET', KEYS[n], 'x', 'r')
    local refused_at = tonumber(domain[2] or '')
    local is_news = refused_at and now - refused_at <= tonumber(ARGV[1])
    answer[#answer + 1] = is_news and domain[1] or ''
    local pause = redis.call('GET', KEYS[n + 1]) or ''
    local ends = tonumber(pause:sub(1, 14)) or 0
    answer[#answer + 1] = math.max(ends - now, 0)
    answer[#answer + 1] = ends > now and pause:sub(15) or ''
end
return answer
