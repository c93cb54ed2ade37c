-- Tells the other processes what the caller has in flight, and hears what they have. The key is a hash:
-- under each process's name the millisecond of this server's clock at which it wrote, and its marks.
--
-- ARGV: the caller's name; its marks; milliseconds after which a process is forgotten; bytes of marks and
-- number of processes at most.
-- Returns of every other process its name, the milliseconds since it wrote, and its marks.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local life, bytes_max, processes_max = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])

-- What no process of ours has written goes.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' or redis.call('HLEN', KEYS[1]) > 2 * processes_max then
  redis.call('DEL', KEYS[1])
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', now) .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], life)

local fields, others = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if name ~= ARGV[1] then
    local at, marks = string.match(value, '^(%d+) (.*)$')
    local age = at and now - tonumber(at)
    local ours = #name == 16 and string.match(name, '^%x+$') and #value <= bytes_max + 32
    if ours and age and age > -life and age < life and #others < 3 * processes_max then
      others[#others + 1] = name
      others[#others + 1] = math.max(age, 0)
      others[#others + 1] = marks
    else
      redis.call('HDEL', KEYS[1], name)
    end
  end
end
return others
