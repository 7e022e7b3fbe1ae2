"""Short "ham" and "spam" messages made from templates, so that an example runs without a download.

The wording and its noise are here; real collections and their files are read in sources.py.
"""

import random
import re

__all__ = ["make_messages"]

# fmt: off
# Template language: [a|b] picks one side, {slot} one of SLOTS[slot], # is a digit 1-9, @ a small letter.
SLOTS: dict[str, tuple[str, ...]] = {
    "name": (
        "Ana", "Ben", "Carla", "Deniz", "Ewa", "Femi", "Grace", "Hugo", "Ines", "Jonas", "Kemal", "Lena",
        "Marcus", "Nadia", "Omar", "Priya", "Rosa", "Sam", "Tom", "Uma", "Viktor", "Wendy", "Yusuf", "Zoe",
        "Callum", "Mei",
    ),
    "kin": ("mum", "dad", "my sister", "my brother", "gran", "my cousin", "auntie {name}", "my flatmate"),
    "place": (
        "the station", "the library", "platform #", "the corner cafe", "the park gate", "the gym", "the office",
        "the old mill", "the bus stop", "{name}'s place", "the market", "the pool", "the harbour", "room ##",
        "the car park", "the pub on Mill Lane", "the bakery", "the museum",
    ),
    "time": ("#pm", "half #", "#.30", "#:15", "noon", "lunchtime", "ten to #", "quarter past #"),
    "day": (
        "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "tomorrow", "tonight",
        "this weekend", "next week", "later today",
    ),
    "food": (
        "pizza", "noodles", "coffee", "curry", "dumplings", "a burger", "soup", "breakfast", "pancakes", "tacos",
        "ice cream", "lunch", "sushi",
    ),
    "thing": (
        "charger", "blue jacket", "maths notes", "bike lock", "spare key", "umbrella", "drill", "library book",
        "tent", "camera", "guitar", "headphones", "laptop", "red scarf", "phone",
    ),
    "event": (
        "match", "gig", "exam", "wedding", "meeting", "rehearsal", "quiz", "barbecue", "lecture", "interview",
        "school play", "choir", "film",
    ),
    "bank": ("Oakline Bank", "Ferris Bank", "Northbay Bank", "Calder Savings", "Tallow & Pike"),
    "courier": ("QuickParcel", "Redpost", "Harrow Couriers", "Swiftbox", "Lanepost"),
    "shop": (
        "Brightmart", "Halden's", "Novacell", "Pinecone Foods", "Kestrel Mobile", "Sunlane Travel", "Tobi's Pizza",
        "Marlow Gym", "Veltra", "Corner Books", "Lumo Energy", "Greyfield Shoes",
    ),
    "sum": ("£##", "$##", "## euro", "£###", "$###", "£#00", "$#000", "#00 euro", "# grand", "#,#00 pounds"),
    "coins": ("£#", "$##", "## quid", "# euro", "##p", "a fiver", "£#.50"),
    # Numbers reserved for fiction and reserved top-level domains, so nobody is called or visited by mistake.
    "phone": ("07700 900###", "07700900###", "555-01##", "(555) 01##", "+44 7700 900###"),
    "link": ("{site}/@@#@", "www.{site}", "http://{site}/@#@@", "{site}"),
    "site": ("{host}.example", "{host}.test"),
    "host": (
        "redpost", "my-oakline", "prizehub", "quickparcel", "go-short", "pix-album", "veltra-club", "cityevents",
        "sharedocs", "novacell-care", "signup4", "mapspot", "clipbox",
    ),
    "gift": (
        "a phone", "a weekend in Lisbon", "a games console", "a gift card", "cinema tickets", "a tablet",
        "a food hamper", "concert tickets", "a spa day", "a mountain bike", "a {sum} voucher",
    ),
}

HAM = (
    "[Are|R] you [still|] up for {food} [near|at] {place} {day}?",
    "Running [a bit|#0 minutes] late, [start|order] without me. I'll be at {place} by {time}",
    "Can you [bring|lend me] the {thing} {day}? [Mine|The old one] is broken",
    "I left my {thing} at {place}, [did you see it|can you grab it]?",
    "{kin} says [hi|hello] and wants to know if you are coming {day}",
    "[Just|Only just] got home, [so tired|my feet hurt]. {event} was [fun|too long|better than expected]",
    "What did {name} say about the {event}? I wasn't [listening|there]",
    "We are out of [milk|bread|cat food], can you stop by the shop on your way [home|back]",
    "Train is [stuck|cancelled|delayed] again, see you at {time} I [hope|guess]",
    "[Happy birthday|Congrats on the new job] {name}! [Drinks|Cake] {day}?",
    "I [can't|cannot] make it {day}, {kin} is [ill|visiting]. [Next week|Another time]?",
    "Do you [remember|know] the name of that {food} place near {place}",
    "[Ok|Fine|Sure], {time} at {place} then. [I'll drive|You drive|Wear boots]",
    "How was the {event}? [Tell me everything|I want details] over {food}",
    "It's [raining|snowing|boiling] here, [don't forget|take] the {thing}",
    "I'm in [the queue|a seminar|the bath], [ring|text] you [after|in ## minutes]",
    "The {event} moved to {time}, can you [tell|let] {name} know",
    "Did [you|anyone] feed the [cat|rabbit|fish]? I [forgot|left early]",
    "[Sorry|Argh], [fell asleep|left my phone upstairs]. What did I miss at {place}?",
    "{name} and I are [watching|at] the {event}, come [over|along] if you're [bored|about]",
    "Thanks for [dinner|the lift|last night], {kin} [loved|liked] it too",
    "I [think|reckon] the {thing} is [under the stairs|in the boot|at {name}'s]",
    "Could you [check|read] my [essay|report] before {day}? [Only|About] # pages",
    "The [boiler|washing machine|shower] is [making that noise|leaking] again, when is the landlord coming",
    "[Been thinking|Thought] about what you said, [you're right|let's talk] {day}",
    "My [knee|tooth|back] still hurts so no {event} for me {day}",
    "[Save|Keep] me a seat, [parking|walking from {place}] now",
    "[Which|What] bus goes to {place}? The ## [isn't running|just left]",
    "{name} is [asking|wondering] if we [cook|bring] {food} or eat out {day}",
    "[Baby|The dog] kept us up till #, so we might [skip|leave early from] the {event}",
    "Did the [doctor|teacher|plumber] call [back|you]? [Worried|Let me know what happened]",
    "I finished the [book|series], the ending is [awful|lovely]. [Your|Whose] turn now",
    "Let's [split|share] a taxi from {place} after the {event}",
    "[Practice|Training] is off {day}, coach is [away|sick]. {food} instead?",
    "My flight lands at {time}, [no need to|can you] pick me up",
    "[Have|Did] you got your results [yet|back]? {name} passed [everything|the resit]",
)

# Words that filters dislike, used by friends.
HAM_HARD = (
    "[Guess what|You won't believe it], I won {gift} at the {event} raffle!",
    "I'm free [all day|from {time}] {day}, call me [if|when] you want [{food}|to talk]",
    "[Got|Found] a free {thing} on the neighbours' list, do you [want|need] it?",
    "{shop} have # for # on {food}, [shall|should] I get some for the {event}?",
    "Can you [send|transfer] me the {coins} for {food}? [No rush|When you get paid]",
    "Your parcel came to [us|my flat], [ring the bell|collect it] any time after {time}",
    "[Pics|Photos] from the {event} are here {link}, yours are [at the end|the best]",
    "My new number is {phone}, [delete|lose] the old one. {name}",
    "URGENT!! [did you take|where is] my {thing}?? {event} starts at {time}",
    "Claim your {thing} from {place} before {kin} [bins it|gives it away] lol",
    "The bank [finally rang|called], they [refunded|found] the {sum}. [So relieved|Drinks on me]",
    "[Winner|Champion] of the {event} buys {food}, that's the deal, so your round",
    "The prize for the {event} is {gift}, [want to|shall we] enter [together|as a team]?",
    "[Please|Can you] call {name} on {phone}, [she|he] can't reach you about the {event}",
    "Tickets are {sum} each, [too much|worth it]? Offer ends {day} so tell me [soon|quick]",
    "I owe you {coins} and {food}. [Cash|Card] or shall I pay for the {event}?",
    "[Text|Reply] YES if you are coming {day}, I need to [count chairs|book the table]",
    "Don't click [that|the] link from {name}, [his|her] account was hacked",
    "Your mum's loan of the {thing} [saved|rescued] us, tell her thanks",
    "[Selected|Picked] for the team!! First {event} is {day}, [come|you have to come] watch",
    "They have a sale on at {shop}, {thing} for {coins}. [Want|Need] one?",
    "Here's the [map|address] for {day}: {link}. Last [house|door] on the left",
    "New phone from {shop}, free for ## months. Is that [good|a con]?",
    "Congratulations!!! {name} told me [the news|about the baby]. Call me",
    "[Courier|{courier}] left a card, can you [collect|wait in for] my parcel {day}?",
    "Your account of the {event} made me laugh. [Limited|No] sympathy though",
    "Only # places left on the trip, {sum} deposit by {day}. Are you [in|coming]?",
    "[Last|Final] reminder from {kin}: bring the {thing} or no cake",
)

SPAM = (
    "You have [been selected|been picked|qualified] for {gift}. [Claim|Collect] [it|now] at {link}",
    "[Congratulations|Well done]! Your number won {sum} in the {shop} draw. Call {phone}",
    "{courier}: your parcel [is on hold|could not be delivered]. Pay {coins} [customs|redelivery] at {link}",
    "{bank}: [unusual|new] sign-in on your account. [Verify|Confirm] your details at {link}",
    "[Get|Take] {sum} [cash|credit] by {day}, no [checks|paperwork]. [Apply|Start] at {link}",
    "Final [notice|chance]: your {shop} [reward|voucher] of {sum} expires {day}. {link}",
    "Hot [singles|dates] near {place} want to meet you {day}. [Join|Chat] at {link}",
    "FREE {thing} with every [contract|plan] at {shop}! Text YES to ####",
    "[Earn|Make] {sum} a week from home, # hours a day. Message {phone} to start",
    "Your [tax|energy] refund of {sum} is [ready|waiting]. Submit the form at {link}",
    "{shop} [sale|clearance]: up to #0% off until {day}. Shop now at {link}",
    "We [tried to reach|could not contact] you about your {sum} [payout|compensation]. Ring {phone}",
    "Your subscription [renews|will be charged] {day} at {sum}. Not you? Cancel on {phone}",
    "Double your first bet up to {sum}. [New players|Members] only, play at {link}",
    "[Lose|Drop] ## pounds in # weeks, the [pill|tea] doctors hide. [Order|Try it] {link}",
    "Your {shop} points ([####]) [run out|expire] {day}, [swap|redeem] them for {gift}: {link}",
    "[Unlock|Activate] your [bonus|prize], send WIN to ####. {coins} per message, 18+",
    "Had an accident [at work|in a car]? You may be owed {sum}. Reply CLAIM for a call",
    "Our tipster hit # wins in a row. [Today's|Tonight's] {event} tip for {coins}: {link}",
    "[Dear|Valued] customer, your {bank} card is [blocked|locked]. Call {phone} to restore it",
    "[Cheap|Discount] flights with {shop}, seats from {coins}. Book by {day} {link}",
    "You are [pre-approved|accepted] for a {sum} loan with {bank}. Reply YES [to continue|for details]",
    "Limited [offer|stock]: {gift} for only {coins}, [ends|closing] {day}. Order on {phone}",
    "[Download|Get] the {shop} app now and [spin|play] for {gift} every day {link}",
    "[Debt|Bills] piling up? Write off up to #0% of it legally. Text HELP to ####",
    "Last [call|day]: claim {gift} from {shop} before {time} or it goes to someone else",
    "{shop} [survey|quiz]: answer # questions [and|to] receive {gift}. Start {link}",
    "Your [device|phone] has # viruses! [Install|Get] the cleaner [now|today] {link}",
    "[Meet|Chat with] {name} and other [locals|lonely hearts] tonight, first ## minutes free {phone}",
    "Coin {name}X is up ###% this week, [buy|get in] before {day}. {link}",
    "Upgrade your {thing} [today|now], {shop} gives you {sum} for the old one. Call {phone}",
    "You missed a [voicemail|call] from our agent about {gift}. [Listen|Hear it] at {link}",
    "Ringtones and [games|wallpapers] from {coins} a week. Send GO to ####, stop any time",
    "[Replica|Designer] watches and shoes for {coins}, [posted|shipped] free {day}. {link}",
)

# Quiet and personal: few numbers, no capitals, words that friends use.
SPAM_HARD = (
    "Hi, [is this|am I talking to] {name}? We [met|spoke] at the {event} and I [kept|saved] your number",
    "I [saw|liked] your profile and [felt|thought] we could be [friends|close]. Where are you from?",
    "[My late uncle|My client] left a sum and I need [an honest person|someone kind] to hold it",
    "Sorry to [bother|trouble] you, I think I have the wrong number. You seem [kind|nice], what do you do?",
    "A [friend|neighbour] told me how [she|he] pays the rent from home, I can show you the same trick",
    "It's {name} from the {event}. My card [is frozen|got stopped], could you buy gift cards for me?",
    "I found [some old photos|a video] of you, is this really you? {link}",
    "[Good morning|Good evening] dear, my [teacher|mentor] trades coins and [shares|gives] the tips with me",
    "[Your|The] [doctor|dentist] won't tell you, but this [tea|cream] took my [knee|back] pain away. Ask me",
    "We [noticed|see] you have not been in for a while. A little something waits for you at {shop}",
    "The people at {place} are [earning|saving] more than you think, ask me how I did it",
    "I am [stuck|stranded] at the airport, [they took|lost] my bag. Can you send {sum}? I'll repay {day}",
    "I work with {shop} and we need [people|someone] to rate hotels a few hours a day, paid {day}",
    "It's {name}, remember me? I'm lonely [tonight|here], come and talk to me on {link}",
    "[Would|Do] you like a second income? No boss, [just|only] your {thing} and an hour after {food}",
    "Your boss asked me to get [vouchers|cards] for the {event}, send me the codes and I'll explain",
    "I read the [cards|stars] for you last night and [saw|found] something about money. Write back to know",
    "The driver is [near|at] {place} but your address is missing, please fill it in: {link}",
    "Hello [dear|friend], did you [think about|consider] the little investment we talked about {day}?",
    "Somebody has [a crush on|feelings for] you. Find out who, it's someone you know: {link}",
    "I'm {name}, I moved to your [town|street] and I'm bored. My [pics|photos] are here {link}",
    "Tell {kin} I can get [the medicine|those pills] without a doctor, just message me [here|back]",
    "We [still|] hold the {thing} in your name. [Settle|Pay] the storage at {link} and it's yours",
    "Your [landlord|school] changed bank, please send [the rent|the fees] to the new account from {day}",
)

# Templates of both classes, with the probability of spam: no reader can be right about all of them.
EITHER = (
    ("Hi [mum|dad], my phone [broke|is lost], this is my new number. Text me [here|back] [please|when you can]", 0.7),
    ("Your parcel is [at the depot|with a neighbour|at {place}], [collect|pick it up] before {day}", 0.4),
    ("[Call|Ring] me back on {phone} when you get a [minute|chance], it is [important|urgent]", 0.6),
    ("Reminder: your appointment at {shop} is {day} at {time}. Reply YES to confirm", 0.3),
    ("Here is the link [you asked for|we talked about]: {link} [see you {day}|tell me what you think]", 0.5),
    ("Did you get my [last message|email]? Please [reply|get back to me] [today|soon|by {day}]", 0.4),
    ("Your code is ######. [Do not share it|It is valid until {time}] [today|, thanks]", 0.5),
    ("I have [two|some] spare tickets for the {event} {day}, {coins} each. Interested? {phone}", 0.4),
    ("Please send the {sum} by {day} so I can [book it|pay the deposit|keep the room]", 0.4),
    ("[Vote|Please vote] for {name} here {link}, it [takes a minute|closes {day}]", 0.6),
    ("{shop} [is|are] giving away {food} at {place} {day}, [be quick|get there early]", 0.6),
    ("Can you do me a [favour|small favour]? I'm in a {event} and can't talk, text me back", 0.6),
)

OPENERS = (
    "Hey", "Hi", "Hello", "Hi {name},", "Hey {name},", "{name},", "Quick one:", "Psst,", "Good news:", "Listen,",
)
ENDINGS = (
    "Thanks", "Let me know", "Call me", "Reply soon", "Don't miss it", "See you", "x", "Ok?", "No worries if not",
    "Love, {name}", "{name}", "Hope you're well", "Tell your friends", "Ask {name} if unsure", "Best, {name}",
    "Cheers", "Hope {kin} is better", "It only takes a minute", "Sorry for the late message", "Speak {day}",
    "I'll be near {place} till {time}", "It's been a while", "You know where to find me", "Say hi to {kin}",
    "I'd do it soon if I were you", "No rush, {day} is fine", "Call if you get lost", "Have a lovely evening",
    "Can't talk now, in a {event}", "Text back whenever", "Don't tell {name} yet", "Everyone at {place} knows",
    "I hear {name} did it too", "You won't regret it", "We close at {time}", "Bring {food}", "Back at {time}",
)
HAM_ENDINGS = ("lol", "haha", "xx", "Miss you", "Can't wait", "I'm starving", "My turn to cook", "{event} was fun")
SPAM_ENDINGS = ("Reply STOP to end", "T&Cs apply", "Act now", "Opt out: send NO", "Hurry", "Today only", "18+ only")

CHAT = {
    "you": "u", "your": "ur", "are": "r", "to": "2", "for": "4", "please": "pls", "thanks": "thx",
    "and": "&", "tomorrow": "tmrw", "tonight": "2nite", "great": "gr8", "because": "cos", "with": "w",
    "be": "b", "see": "c", "about": "abt", "message": "msg", "week": "wk", "before": "b4", "people": "ppl",
}
# fmt: on

CHOICE = re.compile(r"\[([^\[\]]*)\]|\{(\w+)\}")
SHORTEST, LONGEST = 40, 140  # characters
EITHER_SHARE = 0.05


def make_messages(n: int = 1200, seed: int = 123) -> tuple[list[str], list[str]]:
    """Make n short messages, half of them spam, of 40 to 140 characters each.

    About one message in twenty is worded alike in both classes, so no classifier can reach 100 %.

    Args:
        n: Number of messages; an odd number gives one more ham than spam.
        seed: The same n and seed give the same messages in the same order.

    Returns:
        The texts and their labels, "ham" or "spam", in shuffled order.

    Raises:
        ValueError: n is less than 2.

    Example:
        >>> texts, labels = make_messages(4)
        >>> sorted(labels)
        ['ham', 'ham', 'spam', 'spam']
    """
    if n < 2:
        raise ValueError(f"n is {n}; both classes need a message, so pass 2 or more")
    rng = random.Random(seed)
    labels = ["spam" if i < n // 2 else "ham" for i in range(n)]
    rows = [(rng.random(), _message(label, rng), label) for label in labels]
    rows.sort()
    return [text for _, text, _ in rows], [label for _, _, label in rows]


def _pick(options: tuple[str, ...] | list[str], rng: random.Random) -> str:
    # Python keeps the sequence of random() between versions, but not that of choice().
    return options[int(rng.random() * len(options))]


def _message(label: str, rng: random.Random) -> str:
    while True:
        text = _add_noise(_plain_message(label, rng), rng)
        if SHORTEST <= len(text) <= LONGEST:
            return text


def _plain_message(label: str, rng: random.Random) -> str:
    spam = label == "spam"
    kind = rng.random()
    if kind < EITHER_SHARE:
        template = _pick_either(spam, rng)
    elif kind < 0.24:
        template = _pick(SPAM_HARD if spam else HAM_HARD, rng)
    else:
        template = _pick(SPAM if spam else HAM, rng)
    text = _fill(template, rng)
    if rng.random() < 0.35:
        text = f"{_fill(_pick(OPENERS, rng), rng)} {text}"
    # Both classes aim at the same lengths, so that the number of characters does not tell them apart.
    wish = 40 + 65 * rng.random()
    while len(text) < wish:
        own = kind >= EITHER_SHARE and rng.random() < 0.2
        ending = _fill(_pick((SPAM_ENDINGS if spam else HAM_ENDINGS) if own else ENDINGS, rng), rng)
        if ending not in text:
            text += ("" if text[-1] in "?!." else ".") + " " + ending
    return text


def _pick_either(spam: bool, rng: random.Random) -> str:
    while True:
        template, odds = EITHER[int(rng.random() * len(EITHER))]
        if rng.random() < (odds if spam else 1 - odds):
            return template


def _fill(template: str, rng: random.Random) -> str:
    def choose(found: re.Match[str]) -> str:
        return _pick(SLOTS[found[2]] if found[2] else found[1].split("|"), rng)

    text = template
    while CHOICE.search(text):
        text = CHOICE.sub(choose, text)
    text = re.sub("#", lambda _: _pick(list("123456789"), rng), text)
    text = re.sub("@", lambda _: _pick(list("abcdefghijkmnpqrstuvwxyz"), rng), text)
    return " ".join(text.split()).replace(" ,", ",").replace(" ?", "?")


def _add_noise(text: str, rng: random.Random) -> str:
    """Add typing errors, with equal probability in both classes, so that they carry no information."""
    words = text.split(" ")
    haste = rng.random() ** 2
    for i, word in enumerate(words):
        if word.lower() in CHAT and rng.random() < 0.4 * haste:
            words[i] = CHAT[word.lower()]
        elif len(word) > 3 and word.isalpha() and rng.random() < 0.1 * haste:
            words[i] = _typo(word, rng)
        elif rng.random() < 0.02 * haste:
            words[i] = word.upper()
    text = words[0]
    for word in words[1:]:
        text += ("" if rng.random() < 0.03 * haste else " ") + word
    if rng.random() < 0.3:
        text = text.lower()
    elif rng.random() < 0.03:
        text = text.upper()
    style = rng.random()
    if style < 0.15:
        text = re.sub(r"[,.'?!](?=\s|$)", "", text)
    elif style < 0.25:
        text = re.sub(r"\.(?=\s|$)", "...", text)
    elif style < 0.35:
        text = text.rstrip(".") + _pick(("!", "!!", "..", "?", " :)"), rng)
    return text


def _typo(word: str, rng: random.Random) -> str:
    at = 1 + int(rng.random() * (len(word) - 2))
    kind = int(rng.random() * 3)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    return word[:at] + word[at] + word[at:]
