-- Answers with messages of the log of removals, the newest first, and with the number at which the next page begins: 0 is
-- the end, -1 says that older ones are lost.
-- KEYS: log
-- ARGV: greatest age, number of the page or '' for the first, most messages
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local n = tonumber(redis.call('HGET', KEYS[1], 'n') or '') or 0
local oldest = math.max(n - 1024, 0)
local before = tonumber(ARGV[2]) or n
local first = math.max(before - ARGV[3], oldest)
local answer = {'R', 0}
for number = before - 1, first, -1 do
    local entry = redis.call('HGET', KEYS[1], number % 1024)
    local at = entry and tonumber(entry:sub(1, 14))
    if not at or now - at > tonumber(ARGV[1]) then return answer end
    answer[#answer + 1] = entry:sub(15)
end
if first > oldest then answer[2] = first elseif oldest > 0 then answer[2] = -1 end
return answer
